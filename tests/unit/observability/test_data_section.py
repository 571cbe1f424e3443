"""The charts of a data set: every value is in one bar, and axes can be compared."""

from __future__ import annotations

import random
import re

import pytest

from rlvid.observability.data_section import DimensionRow, interval_bars
from rlvid.observability.value_histogram import bin_counts, value_histogram


def _row(low: float, high: float) -> DimensionRow:
    mean = (low + high) / 2
    return DimensionRow(name="d", mean=mean, low=low, high=high, num_clips=8, is_weak=False)


def test_bins_by_hand() -> None:
    """Ends belong to the first and to the last bin."""
    assert bin_counts([0.0, 0.1, 0.25, 0.5, 0.99, 1.0], 0.0, 1.0, 4) == [2, 1, 1, 2]


@pytest.mark.parametrize("seed", range(20))
def test_every_value_is_in_one_bar(seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.uniform(-3.0, 3.0) for _ in range(rng.randint(1, 200))]
    chart = value_histogram(
        "d", values, reach=(min(values), max(values)), unit="reward", num_bins=24, colour=1
    )
    counts = [int(n) for n in re.findall(r": (\d+)</title>", chart)]
    assert len(counts) == 24
    assert sum(counts) == len(values)
    heights = [float(n) for n in re.findall(r'height="([\d.]+)"><title>', chart)]
    assert max(heights) == pytest.approx(100.0), "the fullest bar reaches the top"


def test_equal_values_still_have_an_axis() -> None:
    chart = value_histogram("a <b>", [1.0] * 3, reach=(1.0, 1.0), unit="x", num_bins=24, colour=0)
    assert "nan" not in chart
    assert "a &lt;b&gt;" in chart


def test_intervals_and_threshold_are_on_one_axis() -> None:
    first, second = interval_bars([_row(0.2, 0.4), _row(0.6, 1.0)], 0.9)
    assert (first["low"], second["high"]) == pytest.approx((4.0, 96.0))
    assert first["below"] == second["below"] == pytest.approx(4.0 + 92.0 * 0.7 / 0.8)
    assert second["low"] < second["mean"] < second["below"] < second["high"]
