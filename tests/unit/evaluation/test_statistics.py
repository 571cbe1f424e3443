"""Intervals against values worked out by hand, and against the coverage they promise."""

from __future__ import annotations

import numpy as np
import pytest

from rlvid.evaluation.statistics import auc, paired_bootstrap


def test_mean_and_win_rate_by_hand() -> None:
    """Differences 1, -1, 0, 2: mean 0.5, two wins and one tie of four."""
    interval = paired_bootstrap([0, 1, 2, 3], [1, 0, 2, 5], num_bootstrap=100)
    assert interval.mean_difference == 0.5
    assert interval.win_rate == 0.625
    assert interval.num_pairs == 4


def test_constant_difference_has_no_width() -> None:
    """Every resample has the same mean."""
    interval = paired_bootstrap([0.0, 1.0, 2.0], [0.25, 1.25, 2.25], num_bootstrap=50)
    assert (interval.low, interval.high) == (0.25, 0.25)


def test_two_pairs_have_the_three_means_of_a_coin() -> None:
    """Differences 0 and 1: means 0, 1/2, 1 with chances 1/4, 1/2, 1/4, so 60 % is [0, 1]."""
    interval = paired_bootstrap([0, 0], [0, 1], num_bootstrap=4000, confidence=0.6)
    assert (interval.low, interval.high) == (0.0, 1.0)
    narrow = paired_bootstrap([0, 0], [0, 1], num_bootstrap=4000, confidence=0.4)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """200 experiments of 40 pairs: 95 % intervals miss about 5 %, a percentile one a bit more.

    The count of hits has standard deviation 3.1, so 0.89 to 0.99 is four of them on each side.
    """
    generator = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        before = generator.normal(size=40)
        after = before + generator.normal(loc=0.3, size=40)
        interval = paired_bootstrap(before, after, num_bootstrap=400, seed=trial)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.89 <= hits / 200 <= 0.99


def test_copies_of_a_pair_add_no_certainty_when_clustered() -> None:
    """Ten copies of each prompt's pair are still one observation a prompt."""
    generator = np.random.default_rng(0)
    once = generator.normal(size=30)
    copies = np.repeat(once, 10)
    prompts = np.repeat(np.arange(30), 10).tolist()
    alone = paired_bootstrap(np.zeros(30), once)
    clustered = paired_bootstrap(np.zeros(300), copies, prompts)
    naive = paired_bootstrap(np.zeros(300), copies)
    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low, rel=1e-9)
    assert naive.high - naive.low < 0.5 * (clustered.high - clustered.low)


def test_same_seed_same_interval() -> None:
    before, after = np.zeros(10), np.arange(10.0)
    assert paired_bootstrap(before, after, seed=1) == paired_bootstrap(before, after, seed=1)


def test_auc_by_hand() -> None:
    """Of the pairs (3,1) (3,2) (2,1) (2,2): three wins and a tie."""
    assert auc([3, 2], [1, 2], num_bootstrap=10).value == 0.875


def test_auc_of_separated_sets_is_one_without_width() -> None:
    result = auc([2, 3, 4], [0, 1], num_bootstrap=100)
    assert (result.value, result.low, result.high) == (1.0, 1.0, 1.0)


def test_auc_flips_when_the_sets_are_swapped() -> None:
    generator = np.random.default_rng(5)
    first, second = generator.normal(1.0, size=50), generator.normal(size=60)
    there, back = auc(first, second, num_bootstrap=200), auc(second, first, num_bootstrap=200)
    assert there.value == pytest.approx(1.0 - back.value, abs=1e-12)
    assert there.low < there.value < there.high


def test_auc_of_shifted_gaussians_is_the_known_one() -> None:
    """N(1, 1) against N(0, 1): Phi(1 / sqrt 2) = 0.7602; the standard error at 2000 is 0.007."""
    generator = np.random.default_rng(7)
    result = auc(generator.normal(1.0, size=2000), generator.normal(size=2000), num_bootstrap=20)
    assert result.value == pytest.approx(0.7602, abs=0.03)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([1.0, 2.0], [1.0], "before has 2 scores and after has 1"),
        ([1.0, float("nan")], [1.0, 2.0], "before: 1 of 2 scores are not finite"),
        ([1.0], [2.0], "at least 2 independent pairs"),
    ],
)
def test_input_that_cannot_be_paired_is_refused(
    before: list[float], after: list[float], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        paired_bootstrap(before, after)


def test_one_prompt_is_no_sample_of_prompts() -> None:
    """With one cluster there is nothing to resample, however many seeds it has."""
    with pytest.raises(ValueError, match="at least 2 independent"):
        paired_bootstrap([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], ["a", "a", "a"])
