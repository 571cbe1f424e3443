"""Group-relative credit: from scores of several scorers to one advantage per rollout.

Letters: P groups, G rollouts in a group. All arithmetic is float64; a spread is a population std.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlvid.algorithms.base import Credit
from rlvid.config.algorithm import AdvantageConfig

TOO_FEW = "fewer than two rollouts with all scores"
NO_SPREAD = "no spread in any reward"


def credit(
    scores: Mapping[str, Tensor], weights: Mapping[str, float], config: AdvantageConfig
) -> Credit:
    """Turn scores into advantages: normalise each table in its groups, then sum with the weights.

    Other ways to combine scorers come before this (`aggregation.aggregate`). A rollout that lacks a
    score of a weighted scorer is masked: not trained, and no part of any mean or std. It is never
    scored 0, which would be a verdict. A group without spread is dropped: dividing rounding residue
    by its std would make noise the lesson.

    Args:
        scores: scorer to [P, G], NaN where missing.
        weights: scorer to its weight; scorers of weight 0 are ignored here.
    """
    stacked, weight = _weighted(scores, weights)
    present = ~stacked.isnan().any(dim=0)
    reward = (weight * stacked).sum(dim=0)
    normalised, has_spread = _normalise(stacked, present, config)
    advantage = (weight * normalised).sum(dim=0)
    enough = present.sum(dim=1) >= 2
    spread = has_spread.any(dim=0)
    trained = present & (enough & spread)[:, None]
    if config.best_of_n is not None:
        trained &= _extremes(advantage, trained, config.best_of_n)
    advantage = torch.where(trained, advantage.clamp(-config.clip, config.clip), 0.0)
    dropped = tuple(
        (row, NO_SPREAD if enough[row] else TOO_FEW)
        for row in range(present.shape[0])
        if not (enough[row] and spread[row])
    )
    return Credit(
        advantage=advantage.float(), reward=reward.float(), trained=trained, dropped=dropped
    )


def all_scored(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of scores [P, G], NaN where one is missing, and where none is."""
    stacked, weight = _weighted(scores, weights)
    return (weight * stacked).sum(dim=0), ~stacked.isnan().any(dim=0)


def _weighted(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """Return scores [K, P, G] of the scorers with a weight, and their weights [K, 1, 1]."""
    active = {name: weight for name, weight in weights.items() if weight != 0.0}
    _check(scores, active)
    stacked = torch.stack([scores[name].double().cpu() for name in active])
    return stacked, torch.tensor(list(active.values()), dtype=torch.float64).reshape(-1, 1, 1)


def _check(scores: Mapping[str, Tensor], active: Mapping[str, float]) -> None:
    if not active:
        raise ValueError("credit: weights: expected at least one scorer with a weight, got none")
    missing = sorted(set(active) - set(scores))
    if missing:
        raise ValueError(
            f"credit: scores: nothing of weighted scorers {missing}; expected a [P, G] tensor of "
            "each, NaN where a score is missing"
        )
    shapes = {tuple(scores[name].shape) for name in active}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"credit: scores: expected one shape [P, G] for all, got {sorted(shapes)}")


def _normalise(scores: Tensor, present: Tensor, config: AdvantageConfig) -> tuple[Tensor, Tensor]:
    """Centre [K, P, G] in its groups and divide by the chosen std.

    Returns the normalised scores, exactly 0 where missing or without spread, and has_spread [K, P].
    """
    count = present.sum(dim=1).clamp(min=1)
    known = torch.where(present, scores, 0.0)
    mean = known.sum(dim=2) / count
    centred = torch.where(present, scores - mean[..., None], 0.0)
    group_std = (centred.square().sum(dim=2) / count).sqrt()
    has_spread = group_std >= config.min_std
    if config.std == "group":
        std = group_std
    elif config.std == "max_group":
        std = group_std.amax(dim=1, keepdim=True).expand_as(group_std)
    elif config.std == "none":
        std = torch.ones_like(group_std)
    else:
        total = present.sum().clamp(min=1)
        batch_mean = known.sum(dim=(1, 2), keepdim=True) / total
        deviation = torch.where(present, scores - batch_mean, 0.0)
        std = (deviation.square().sum(dim=(1, 2)) / total).sqrt()[:, None].expand_as(group_std)
    safe_std = torch.where(has_spread, std, 1.0)
    return torch.where(has_spread[..., None], centred / safe_std[..., None], 0.0), has_spread


def _extremes(advantage: Tensor, candidates: Tensor, best_of_n: int) -> Tensor:
    """Mask [P, G] of the top and bottom halves of `best_of_n` (DanceGRPO); ties go by index."""
    num_bottom = best_of_n // 2
    num_top = best_of_n - num_bottom
    kept = torch.zeros_like(candidates)
    for row in range(advantage.shape[0]):
        rollouts = candidates[row].nonzero().flatten()
        order = rollouts[advantage[row, rollouts].argsort(stable=True)]
        kept[row, order[:num_bottom]] = True
        kept[row, order[-num_top:]] = True
    return kept
