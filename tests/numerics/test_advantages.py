"""Credit: what scores say about rollouts, and when they say nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.advantages import NO_SPREAD, TOO_FEW, credit
from rlvid.algorithms.base import Credit
from rlvid.config import AdvantageConfig

NAN = math.nan


def of(scores: list[list[float]] | Tensor, **config: Any) -> Credit:
    return credit({"motion": torch.as_tensor(scores)}, {"motion": 1.0}, AdvantageConfig(**config))


SCORES = torch.tensor([[0.1, 0.5, 0.4, 0.9], [3.0, 1.0, 2.0, 7.0]], dtype=torch.float64)


@pytest.mark.parametrize("std", ["group", "global", "max_group", "none"])
def test_group_mean_is_zero(std: str) -> None:
    """A rollout is judged against its own group. Tolerance: float32 of the result."""
    mean = of(SCORES, std=std).advantage.mean(dim=1)
    torch.testing.assert_close(mean, torch.zeros(2), rtol=0.0, atol=1e-6)


def test_group_std_gives_unit_spread() -> None:
    """Population std, as Flow-GRPO's; two rollouts get exactly 1 and -1."""
    spread = of(SCORES).advantage.std(dim=1, unbiased=False)
    torch.testing.assert_close(spread, torch.ones(2), rtol=1e-6, atol=0.0)
    assert of([[2.0, 4.0]]).advantage.tolist() == [[-1.0, 1.0]]


def test_max_group_std_does_not_amplify_a_narrow_group() -> None:
    """LongCat-Video: all groups are divided by the widest group's std."""
    got = of([[0.0, 2.0], [0.0, 0.2]], std="max_group").advantage
    torch.testing.assert_close(got, torch.tensor([[-1.0, 1.0], [-0.1, 0.1]]))


def test_global_std_is_over_the_whole_batch() -> None:
    """Scores 0, 2, 4, 6 have population std sqrt(5); each group is centred on its own mean."""
    got = of([[0.0, 2.0], [4.0, 6.0]], std="global").advantage
    one = 1.0 / math.sqrt(5.0)
    torch.testing.assert_close(got, torch.tensor([[-one, one], [-one, one]]))


def test_no_std_only_centres() -> None:
    """For rewards with a scale of their own: a wide group then weighs more than a narrow one."""
    assert of([[0.0, 2.0], [0.0, 0.5]], std="none").advantage.tolist() == [
        [-1.0, 1.0],
        [-0.25, 0.25],
    ]


@pytest.mark.parametrize("std", ["group", "global", "max_group", "none"])
def test_adding_a_constant_changes_nothing(std: str) -> None:
    """Only differences between rollouts are information. Tolerance: float64 cancellation."""
    torch.testing.assert_close(
        of(SCORES + 50.0, std=std).advantage, of(SCORES, std=std).advantage, rtol=1e-5, atol=1e-6
    )


def test_permuting_rollouts_permutes_advantages() -> None:
    """A rollout's index carries no meaning."""
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(of(SCORES[:, order]).advantage, of(SCORES).advantage[:, order])


@pytest.mark.parametrize("std", ["group", "global", "max_group", "none"])
def test_uniform_group_earns_exactly_nothing_and_is_dropped(std: str) -> None:
    """Equal rewards do not say which video is better; rounding residue must not say it either."""
    got = of([[0.7, 0.7, 0.7], [0.1, 0.2, 0.3]], std=std)
    assert torch.equal(got.advantage[0], torch.zeros(3))
    assert not got.trained[0].any()
    assert got.trained[1].all()
    assert got.dropped == ((0, NO_SPREAD),)


def test_missing_score_masks_its_rollout_and_no_other() -> None:
    """A scorer's failure is not a verdict: the rest is credited as if it were not there."""
    got = of([[0.1, NAN, 0.5, 0.9]])
    alone = of([[0.1, 0.5, 0.9]])
    assert got.trained.tolist() == [[True, False, True, True]]
    assert got.advantage[0, 1] == 0.0
    assert torch.equal(got.advantage[0, [0, 2, 3]], alone.advantage[0])
    assert torch.isnan(got.reward[0, 1])


@pytest.mark.parametrize("std", ["global", "max_group"])
def test_missing_score_stays_out_of_batch_statistics(std: str) -> None:
    """The std over the batch ignores it too."""
    with_gap = of([[0.0, 2.0, NAN], [4.0, 6.0, NAN]], std=std)
    without = of([[0.0, 2.0], [4.0, 6.0]], std=std)
    assert torch.equal(with_gap.advantage[:, :2], without.advantage)


def test_group_with_one_scored_rollout_is_dropped() -> None:
    """There is nothing to compare it with."""
    got = of([[0.4, NAN, NAN], [0.1, 0.2, 0.3]])
    assert got.dropped == ((0, TOO_FEW),)
    assert not got.trained[0].any()


def test_score_of_weight_zero_neither_counts_nor_masks() -> None:
    """It is watched, not trained on."""
    scores = {"motion": torch.tensor([[0.0, 1.0]]), "watched": torch.tensor([[NAN, 5.0]])}
    got = credit(scores, {"motion": 1.0, "watched": 0.0}, AdvantageConfig())
    assert got.advantage.tolist() == [[-1.0, 1.0]]
    assert got.trained.all()


def test_rewards_are_normalised_before_they_are_summed() -> None:
    """A scorer on a scale of 100 must not drown one on a scale of 1."""
    scores = {
        "small": torch.tensor([[0.0, 1.0, 0.0, 1.0]]),
        "large": torch.tensor([[0.0, 0.0, 100.0, 100.0]]),
    }
    weights = {"small": 1.0, "large": 0.5}
    got = credit(scores, weights, AdvantageConfig())
    assert got.advantage.tolist() == [[-1.5, 0.5, -0.5, 1.5]]
    assert got.reward.tolist() == [[0.0, 1.0, 50.0, 51.0]]


def test_scorer_without_spread_leaves_the_others_alone() -> None:
    """It adds exactly 0, and the group still learns from the rest."""
    scores = {"flat": torch.tensor([[0.7, 0.7]]), "motion": torch.tensor([[0.0, 1.0]])}
    got = credit(scores, {"flat": 1.0, "motion": 1.0}, AdvantageConfig())
    assert got.advantage.tolist() == [[-1.0, 1.0]]
    assert got.dropped == ()


def test_best_of_n_keeps_the_extremes() -> None:
    """DanceGRPO: the top 2 and bottom 2 of 6, with advantages from all 6."""
    scores = [[0.5, 0.0, 0.9, 0.4, 1.0, 0.1]]
    got, every = of(scores, best_of_n=4), of(scores)
    assert got.trained.tolist() == [[False, True, True, False, True, True]]
    assert torch.equal(got.advantage[got.trained], every.advantage[got.trained])
    assert torch.equal(got.advantage[~got.trained], torch.zeros(2))


def test_advantages_are_clipped() -> None:
    """One outlier of 99 rollouts alike would have advantage sqrt(99)."""
    scores = torch.zeros(1, 100)
    scores[0, 0] = 1.0
    assert float(of(scores, clip=5.0).advantage.max()) == 5.0


def test_weighted_scorer_without_scores_is_an_error() -> None:
    """A forgotten scorer must not silently have weight 0."""
    with pytest.raises(ValueError, match="physics"):
        credit({"motion": SCORES}, {"motion": 1.0, "physics": 1.0}, AdvantageConfig())
