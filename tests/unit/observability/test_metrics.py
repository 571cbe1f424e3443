"""The table of metrics is complete, and what is not in it is an error."""

from __future__ import annotations

import pytest

from rlvid.observability.metrics import METRICS, check_names, metric, unhealthy


def test_every_name_is_area_name_statistic() -> None:
    """Dashboards group by the parts."""
    assert [name for name in METRICS if name.count("/") != 2] == []


def test_unknown_name_is_an_error_that_names_the_near_one() -> None:
    """A misspelt metric would leave a chart empty for the whole run."""
    with pytest.raises(ValueError, match="did you mean 'learner/clip/frac'"):
        check_names(["learner/clips/frac"])


def test_pattern_takes_any_scorer_but_only_one_part() -> None:
    assert metric("rewards/my_scorer/mean") is METRICS["rewards/<scorer>/mean"]
    with pytest.raises(ValueError, match="not in the table"):
        metric("rewards/a/b/mean")


def test_value_outside_its_range_is_named() -> None:
    lines = unhealthy({"learner/clip/frac": 0.9, "rollout/reward/mean": 0.9})
    assert len(lines) == 1
    assert lines[0].startswith("learner/clip/frac = 0.9 is outside 0..0.5")


def test_nan_is_never_healthy() -> None:
    assert unhealthy({"learner/kl/mean": float("nan")}) != []
