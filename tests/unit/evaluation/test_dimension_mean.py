"""The mean over dimensions against values worked out by hand."""

from __future__ import annotations

from operator import itemgetter

import pytest

from rlvid.evaluation.dimension_mean import mean_of_means_bootstrap
from rlvid.evaluation.statistics import paired_bootstrap

Table = dict[tuple[str, int], tuple[float, float]]


def test_each_dimension_counts_the_same_however_few_pairs_it_judges() -> None:
    """Three pairs that rise by .3 and one that falls by .1: the mean of both is .1."""
    many: Table = {(f"p{i}", 0): (0.5, 0.8) for i in range(3)}
    few: Table = {("p0", 0): (0.6, 0.5)}
    found = mean_of_means_bootstrap([many, few], prompt_of=itemgetter(0), num_bootstrap=500)
    assert found.before == pytest.approx(0.55)
    assert found.after == pytest.approx(0.65)
    assert found.interval.mean_difference == pytest.approx(0.1)
    assert found.interval.num_pairs == 3
    assert found.interval.win_rate == 1.0  # p0 by .2 / 2, the others by .3
    # A resample without p0 has only the first dimension, at .3; every other has .1.
    assert (found.interval.low, found.interval.high) == pytest.approx((0.1, 0.3))


def test_one_dimension_has_the_interval_of_paired_bootstrap() -> None:
    pairs: Table = {(f"p{i % 20}", i): (0.0, (i * 37 % 11) / 10) for i in range(60)}
    one = mean_of_means_bootstrap([pairs], prompt_of=itemgetter(0), num_bootstrap=20_000)
    same = paired_bootstrap(
        [first for first, _ in pairs.values()],
        [second for _, second in pairs.values()],
        [prompt for prompt, _ in pairs],
        num_bootstrap=20_000,
    )
    assert one.interval.mean_difference == pytest.approx(same.mean_difference)
    assert one.interval.low == pytest.approx(same.low, abs=0.01)
    assert one.interval.high == pytest.approx(same.high, abs=0.01)


def test_clips_of_a_prompt_are_resampled_together() -> None:
    """Ten seeds of each prompt agree, so they widen nothing less than one would."""
    alone: Table = {(f"p{i}", 0): (0.0, float(i % 2)) for i in range(10)}
    repeated: Table = {(f"p{i}", j): (0.0, float(i % 2)) for i in range(10) for j in range(10)}
    widths = []
    for table in (alone, repeated):
        found = mean_of_means_bootstrap([table], prompt_of=itemgetter(0)).interval
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0], abs=1e-9)


@pytest.mark.parametrize(
    ("tables", "message"),
    [([], "tables with a pair each"), ([{}], "tables with a pair each")],
)
def test_nothing_to_compare_is_an_error(tables: list[Table], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_of_means_bootstrap(tables, prompt_of=itemgetter(0))


def test_one_prompt_alone_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 2 prompts"):
        mean_of_means_bootstrap([{("p", 0): (0.0, 1.0)}], prompt_of=itemgetter(0))
