r"""Preference optimisation on flow-matching errors: Flow-DPO, and pairs from scored groups.

    L = -log sigmoid( -beta / 2 [ (e_w - e_w_ref) - (e_l - e_l_ref) ] )
    e = || v - (noise - clean) ||^2

for the chosen video w and the rejected one l, policy and frozen reference at the same noise level
(Flow-DPO, arXiv:2501.13918; Diffusion-DPO, arXiv:2311.12908, whose errors are of the noise). An
error of the noise is (1 - sigma)^2 times one of the velocity, so the derivation gives
beta (1 - sigma)^2; Flow-DPO reports that a constant beta is better on all its dimensions, and that
the scaled one is hacked. The equation was read in notes on the paper; its number and the beta of
its video runs were NOT FOUND. Released code for images takes the *mean* over elements, as here
(Flow-GRPO's repository; Flow-Factory, with a beta of 2000); for the paper's sum divide that by the
number of elements.

Letters: P pairs, G rollouts of a group, N clips; index 0 of a leading 2 is chosen, 1 is rejected.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlvid.algorithms.advantages import credit
from rlvid.algorithms.base import Credit, LossTerms, OtherPolicies
from rlvid.algorithms.forward import present, row_terms
from rlvid.algorithms.forward_batch import ForwardBatch, Units
from rlvid.config.algorithm import AdvantageConfig, AlgorithmConfig

BetaSchedule = Literal["constant", "derived"]


NO_PAIR = "no two rollouts differ in their advantage"


class Dpo:
    """Online Flow-DPO on pairs of scored groups: `algorithm.use: dpo`."""

    is_group_local = True

    def credit(
        self,
        scores: Mapping[str, Tensor],
        weights: Mapping[str, float],
        config: AdvantageConfig,
    ) -> Credit:
        """Scores [P, G] by scorer (NaN where missing) -> advantages, which order the pairs.

        A group in which none is better than another is dropped: scorers that contradict each other
        can leave one with a spread and no order.
        """
        found = credit(scores, weights, config)
        lowest = torch.where(found.trained, found.advantage, torch.inf).amin(dim=1)
        highest = torch.where(found.trained, found.advantage, -torch.inf).amax(dim=1)
        is_level = found.trained.any(dim=1) & (lowest == highest)
        return replace(
            found,
            trained=found.trained & ~is_level[:, None],
            dropped=(
                *found.dropped,
                *((row, NO_PAIR) for row in is_level.nonzero()[:, 0].tolist()),
            ),
        )

    def other_policies(self, config: AlgorithmConfig) -> OtherPolicies:
        """Return the frozen reference."""
        return OtherPolicies(reference=True)

    def units(self, advantage: Tensor, trained: Tensor, config: AlgorithmConfig) -> Units:
        """Pairs of rollouts, the chosen one first; a rollout in none of them has no rows."""
        known = torch.where(trained, advantage, torch.nan)
        pairs = pick_pairs(known, [0] * len(known), max_pairs=config.dpo.max_pairs)
        return [(pair.chosen, pair.rejected) for pair in pairs]

    def loss(
        self,
        batch: ForwardBatch,
        velocity: Tensor,
        *,
        config: AlgorithmConfig,
        old_velocity: Tensor | None = None,
        reference_velocity: Tensor | None = None,
    ) -> LossTerms:
        """Return `flow_dpo_loss` of the trained pairs; terms count pairs, not rows.

        Args:
            velocity, reference_velocity: [N, C, F, H, W] at `batch.latents`.
        """
        reference = present(reference_velocity, "dpo", "reference")
        found = flow_dpo_loss(
            _by_place(velocity),
            _by_place(reference),
            _by_place(batch.clean),
            batch.noise[::2],
            batch.sigma[::2],
            beta=config.dpo.beta,
            schedule=config.dpo.schedule,
        )
        means = {
            "policy_loss": found.loss,
            "implicit_margin": found.implicit_margin,
            "pairs_right": (found.implicit_margin > 0.0).float(),
        }
        return row_terms(batch.trained[::2], found.loss, means)


def _by_place(rows: Tensor) -> Tensor:
    """[2 P, ...], pairs side by side -> [2, P, ...]."""
    return rows.view(-1, 2, *rows.shape[1:]).transpose(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two clips of one prompt, of which one is better; places in the list they were picked from."""

    chosen: int
    rejected: int
    margin: float
    """Reward of the chosen one minus that of the rejected one; above 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoLoss:
    """The loss of some pairs and what to watch."""

    loss: Tensor
    """[P] with a gradient; log 2 where policy and reference agree."""
    implicit_margin: Tensor
    """[P] argument of the sigmoid, detached: above 0 where the policy orders the pair rightly."""


def pick_pairs(
    rewards: Tensor,
    groups: Sequence[Hashable],
    *,
    min_margin: float = 0.0,
    max_pairs: int | None = 1,
) -> tuple[Pair, ...]:
    """Return pairs of the best and worst clips of every group, largest margin first in a group.

    The k-th best is set against the k-th worst, so no clip is in two pairs. Online the list is a
    table [P, G] flattened and a group is a row; offline it is a data set and a group is a prompt.

    Args:
        rewards: [N], higher is better; NaN is a missing reward, and its clip is in no pair.
        groups: [N] group of each clip.
        min_margin: smallest difference of rewards of a pair. Equal rewards never make a pair: they
            do not say which clip is better.
        max_pairs: of a group; None takes as many as there are.

    Returns:
        Pairs, groups in order of first appearance; ties go to the earlier clip.
    """
    if rewards.dim() != 1 or len(rewards) != len(groups):
        raise ValueError(
            f"pick_pairs: rewards: expected one for each clip, got shape {tuple(rewards.shape)} "
            f"for {len(groups)} clips."
        )
    if min_margin < 0.0 or (max_pairs is not None and max_pairs < 1):
        raise ValueError(
            "pick_pairs: expected min_margin >= 0 and max_pairs >= 1 or None, got "
            f"{min_margin} and {max_pairs}."
        )
    values: list[float] = rewards.double().tolist()
    members: dict[Hashable, list[int]] = {group: [] for group in groups}
    for place, (value, group) in enumerate(zip(values, groups, strict=True)):
        if value == value:
            members[group].append(place)
    pairs: list[Pair] = []
    for places in members.values():
        best = sorted(places, key=lambda place: (-values[place], place))
        worst = sorted(places, key=lambda place: (values[place], place))
        limit = len(places) // 2 if max_pairs is None else min(max_pairs, len(places) // 2)
        for chosen, rejected in zip(best[:limit], worst[:limit], strict=True):
            margin = values[chosen] - values[rejected]
            if margin > 0.0 and margin >= min_margin:
                pairs.append(Pair(chosen=chosen, rejected=rejected, margin=margin))
    return tuple(pairs)


def pair_beta(sigma: Tensor, *, beta: float, schedule: BetaSchedule) -> Tensor:
    """Return the beta of each pair [P] float64: constant, or the derived beta (1 - sigma)^2."""
    if beta <= 0.0:
        raise ValueError(f"dpo: beta: expected above 0, got {beta}.")
    if schedule == "constant":
        return torch.full_like(sigma, beta, dtype=torch.float64)
    return beta * (1.0 - sigma.double()).square()


def flow_dpo_loss(
    velocity: Tensor,
    reference_velocity: Tensor,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    *,
    beta: float,
    schedule: BetaSchedule = "constant",
) -> DpoLoss:
    """Return the loss of every pair.

    e - e_ref is taken element by element as (v - v_ref)(v + v_ref - 2 u), u = noise - clean: the
    difference of two large means would be rounding noise times beta. It is exactly 0, and the loss
    log 2, where policy and reference agree.

    Args:
        velocity: [2, P, C, F, H, W] of the policy, with gradient, at
            add_noise(clean, noise, sigma).
        reference_velocity: of the frozen reference, same rows.
        clean: [2, P, C, F, H, W].
        noise: [P, C, F, H, W], the same for both of a pair, so that it does not tell them apart.
        sigma: [P], likewise.
        beta: of errors that are means over elements.
    """
    if velocity.shape[0] != 2 or velocity.shape[1:] != noise.shape:
        raise ValueError(
            f"dpo: velocity: expected [2, {', '.join(map(str, noise.shape))}], chosen and rejected "
            f"of each pair, got {list(velocity.shape)}"
        )
    reference = reference_velocity.detach()
    target = noise - clean
    change = (velocity - reference) * (velocity + reference - 2.0 * target)
    chosen, rejected = change.flatten(2).mean(dim=2, dtype=torch.float64)
    logits = -0.5 * pair_beta(sigma, beta=beta, schedule=schedule) * (chosen - rejected)
    return DpoLoss(
        loss=-logsigmoid(logits).to(velocity.dtype),
        implicit_margin=logits.detach().to(velocity.dtype),
    )
