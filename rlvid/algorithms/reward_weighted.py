r"""Reward-weighted flow matching, GigaVideo-1's objective (arXiv:2506.10639, eq. 3).

    L = E[ w(r) || v - (noise - clean) ||^2 ]  +  beta E_real[ || v - (noise - clean) ||^2 ]

The sign trap. The equation is quoted with a minus, E[ -r ||...||^2 ] (methods 2.3). Minimised as it
stands it would push the model away from its best clips, the harder the better they are. What is
meant, and what is here, is a positive weight that is minimised: a clip of high reward is fitted
more closely, one of weight 0 not at all. No weight is ever negative.

The range of r, its normalisation and beta were NOT FOUND in the paper: they are settings here.

Letters: N clips of a data set. Not policy gradient: no ratio, no log-probability, no noise added.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor

WeightKind = Literal["uniform", "raw", "exponential", "group_softmax", "positive_advantage"]

SMALLEST_STD = 1e-6
"""Below it the clips of a prompt count as equally good, and none has an advantage."""


def clip_weights(
    rewards: Tensor,
    groups: Sequence[Hashable],
    *,
    kind: WeightKind,
    temperature: float = 1.0,
    max_weight: float | None = None,
    normalise: bool = True,
) -> Tensor:
    r"""Return the weight of every clip.

        uniform             1                                      plain fine-tuning
        raw                 r, which must lie in [0, 1]            the equation, but for its sign
        exponential         exp((r - max r) / temperature)         reward-weighted regression
                                                                   (Peters and Schaal, 2007)
        group_softmax       G softmax_group(r / temperature)       each prompt weighs the same
        positive_advantage  max(0, (r - mean_group) / std_group)   GRPO's advantage, its good half

    Args:
        rewards: [N], higher is better.
        groups: [N] the prompt of each clip; clips of one prompt are compared with one another.
        temperature: in units of the reward.
        max_weight: cut-off after normalising, so that a few clips do not make up the gradient.
        normalise: divide by the mean weight, so that the learning rate means the same for every
            kind. Off, `raw` is the equation to the letter.

    Returns:
        [N] float32, none negative.

    Raises:
        ValueError: rewards that are not finite (mask missing ones first), outside [0, 1] for `raw`,
            other numbers of groups than rewards, or no weight above zero.
    """
    rewards = _checked(rewards, groups)
    weights = _weights(rewards, _places(groups), kind, temperature)
    mean = float(weights.mean())
    if mean <= 0.0:
        raise ValueError(
            f"clip_weights: {kind}: no clip has a weight above 0: expected rewards that differ "
            f"within a prompt, got {len(rewards)} clips without any. Take kind uniform, or look at "
            "the scores."
        )
    if normalise:
        weights = weights / mean
    if max_weight is not None:
        weights = weights.clamp(max=max_weight)
    return weights.float()


def keep_best(
    rewards: Tensor,
    groups: Sequence[Hashable],
    *,
    best_frac: float = 1.0,
    min_reward: float | None = None,
) -> Tensor:
    """Return which clips filtered fine-tuning keeps, [N] bool.

    Args:
        best_frac: share of each group, its best ones, rounded up; ties keep the earlier clip.
        min_reward: lowest reward that is kept; None sets no bound.
    """
    if not 0.0 < best_frac <= 1.0:
        raise ValueError(f"keep_best: best_frac: expected a share in (0, 1], got {best_frac}.")
    rewards = _checked(rewards, groups)
    places = _places(groups)
    kept = torch.zeros(len(rewards), dtype=torch.bool)
    for place in range(int(places.max()) + 1):
        members = (places == place).nonzero().flatten()
        order = torch.argsort(rewards[members], descending=True, stable=True)
        count = math.ceil(best_frac * len(members) - 1e-9)
        kept[members[order[:count]]] = True
    if min_reward is not None:
        kept &= rewards >= min_reward
    return kept


def standardise(rewards: Tensor, groups: Sequence[Hashable]) -> Tensor:
    """Return (r - mean) / std within each group, [N] float64; 0 where a group has no spread.

    With the dimension of each clip as its group, an easy dimension weighs no more than a hard one.
    """
    rewards = _checked(rewards, groups)
    places = _places(groups)
    mean, std = _moments(rewards, places)
    spread = std > SMALLEST_STD
    safe = torch.where(spread, std, torch.ones_like(std))
    return torch.where(spread[places], (rewards - mean[places]) / safe[places], 0.0)


def _weights(rewards: Tensor, places: Tensor, kind: WeightKind, temperature: float) -> Tensor:
    if kind == "uniform":
        return torch.ones_like(rewards)
    if kind == "raw":
        outside = (rewards < 0) | (rewards > 1)
        if outside.any():
            raise ValueError(
                f"clip_weights: raw: expected rewards in [0, 1], got {int(outside.sum())} outside, "
                f"e.g. {float(rewards[outside][0]):g}. Take exponential or group_softmax, which "
                "need no range."
            )
        return rewards
    if kind == "positive_advantage":
        mean, std = _moments(rewards, places)
        spread = std[places].clamp(min=SMALLEST_STD)
        return ((rewards - mean[places]) / spread).clamp(min=0.0) * (std[places] > SMALLEST_STD)
    if temperature <= 0.0:
        raise ValueError(f"clip_weights: temperature: expected above 0, got {temperature}.")
    if kind == "exponential":
        return ((rewards - rewards.max()) / temperature).exp()
    sizes = torch.bincount(places).double()
    highest = torch.full_like(sizes, -torch.inf).scatter_reduce(0, places, rewards, "amax")
    powers = ((rewards - highest[places]) / temperature).exp()
    sums = torch.zeros_like(sizes).index_add(0, places, powers)
    return sizes[places] * powers / sums[places]


def _moments(rewards: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and population standard deviation of every group."""
    sizes = torch.bincount(places).double()
    mean = torch.zeros_like(sizes).index_add(0, places, rewards) / sizes
    squares = torch.zeros_like(sizes).index_add(0, places, (rewards - mean[places]).square())
    return mean, (squares / sizes).sqrt()


def _places(groups: Sequence[Hashable]) -> Tensor:
    """Return the number of each clip's group, [N] int64, in order of first appearance."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return torch.tensor([numbers[group] for group in groups])


def _checked(rewards: Tensor, groups: Sequence[Hashable]) -> Tensor:
    if rewards.dim() != 1 or len(rewards) == 0 or len(rewards) != len(groups):
        raise ValueError(
            f"rewards: expected one for each clip, got shape {tuple(rewards.shape)} for "
            f"{len(groups)} clips."
        )
    missing = int((~rewards.isfinite()).sum())
    if missing:
        raise ValueError(
            f"rewards: expected finite numbers, got {missing} of {len(rewards)} that are not. "
            "Leave out clips without a score; a missing reward is never 0."
        )
    return rewards.double()
