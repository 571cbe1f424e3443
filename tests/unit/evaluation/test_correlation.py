"""Correlation of scorers, and the difference between prompts that must not count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlvid.evaluation.correlation import (
    average_ranks,
    correlations,
    group_ranks,
    groups_with_spread,
    pearson,
    upper_limit,
)
from rlvid.observability.metrics import check_names

NAN = math.nan


def test_pearson_by_hand() -> None:
    """Deviations (-1, 0, 1) and (-1, -1, 2): 3 / sqrt(2 * 6)."""
    got = pearson(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 3.0]))
    assert got == pytest.approx(3.0 / math.sqrt(12.0), rel=1e-12)


def test_equal_values_share_their_ranks() -> None:
    assert average_ranks(np.array([5.0, 1.0, 5.0, 9.0])).tolist() == [1.5, 0.0, 1.5, 3.0]


def test_ranks_inside_groups_are_those_of_the_known() -> None:
    """Each group on its own, ties shared, missing ones not counted."""
    values = np.array([[5.0, 1.0, 5.0, 9.0], [2.0, NAN, 1.0, 0.0]])
    known = ~np.isnan(values)
    got = group_ranks(values, known)
    assert got[0].tolist() == average_ranks(values[0]).tolist()
    assert got[1, known[1]].tolist() == [2.0, 1.0, 0.0]


def test_correlation_inside_groups_is_free_of_the_prompts() -> None:
    """Hard prompts get low scores from both, easy ones high; inside a group they disagree.

    Over all rollouts they look alike, and that is the number that would mislead.
    """
    step = {
        "a": np.array([[0.0, 0.1, 0.2], [10.0, 10.1, 10.2]]),
        "b": np.array([[0.2, 0.1, 0.0], [10.2, 10.1, 10.0]]),
    }
    [pair] = correlations([step])
    assert pair.pearson > 0.99
    assert pair.pearson_in_group == pytest.approx(-1.0)
    assert pair.spearman_in_group == pytest.approx(-1.0)
    assert (pair.name, pair.num_rollouts, pair.num_groups) == ("a~b", 6, 2)
    check_names(pair.metrics())


def test_adding_a_constant_or_stretching_changes_nothing() -> None:
    """Scorers have units of their own. Tolerance: float64 cancellation at an offset of 50."""
    generator = np.random.default_rng(0)
    one, two = generator.random((5, 4)), generator.random((5, 4))
    [plain] = correlations([{"a": one, "b": two}])
    [moved] = correlations([{"a": 50.0 + 3.0 * one, "b": two}])
    assert moved.pearson_in_group == pytest.approx(plain.pearson_in_group, abs=1e-12)
    assert moved.spearman == pytest.approx(plain.spearman, abs=1e-12)


def test_missing_score_takes_only_its_rollout_out() -> None:
    step = {
        "a": np.array([[0.0, 1.0, 2.0, NAN]]),
        "b": np.array([[0.0, 1.0, 2.0, -9.0]]),
    }
    [pair] = correlations([step])
    assert pair.pearson == pytest.approx(1.0)
    assert pair.num_rollouts == 3


def test_scorer_without_spread_has_no_correlation() -> None:
    """0 would say that the two are independent, which nobody has seen."""
    step = {"a": np.full((2, 3), 0.7), "b": np.random.default_rng(0).random((2, 3))}
    [pair] = correlations([step])
    assert math.isnan(pair.pearson_in_group)
    assert pair.metrics() == {}


def test_window_takes_steps_together() -> None:
    """One group a step is little; over steps they add up."""
    generator = np.random.default_rng(1)
    steps = [{"a": generator.random((1, 4)), "b": generator.random((1, 4))} for _ in range(5)]
    [pair] = correlations(steps)
    assert (pair.num_rollouts, pair.num_groups) == (20, 5)


def test_upper_limit_is_fisher_s() -> None:
    """atanh(-0.5) + 2.576 / sqrt(100) = -0.2917; a few rollouts say nothing."""
    assert upper_limit(-0.5, 101) == pytest.approx(math.tanh(math.atanh(-0.5) + 0.2576))
    assert upper_limit(-1.0, 3) == 1.0


def test_groups_with_spread_are_counted_over_the_window() -> None:
    steps = [{"a": np.array([[1.0, 1.0], [1.0, 2.0]])}, {"a": np.array([[3.0, NAN], [4.0, 5.0]])}]
    assert groups_with_spread(steps, "a", 1e-6) == 2
    assert groups_with_spread(steps, "b", 1e-6) == 0
