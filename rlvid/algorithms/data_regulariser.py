r"""What keeps a policy near good data or near another policy: pulls to add to any of the losses.

    data loss      L = L_RL + beta E_data || v - (noise - clean) ||^2
                   DDRL (arXiv:2512.04332): the KL is taken from data to policy, which is the
                   pre-training loss on real or synthetic clips. A KL at the policy's own samples
                   asks a reference about states it never saw; that is how rewards are hacked.
    selective KL   only on rows on which the rewards disagree (Astrolabe, arXiv:2603.17051, whose
                   configurations call it GARDO, arXiv:2512.24138). The controller of the share, 2
                   to 20 %, was NOT FOUND as a formula: the share is an argument.

DDRL was read in notes on the paper, in which the advantage is divided by beta where here the data
loss is multiplied by it. A term of weight 0 is left out, not multiplied: it changes no bit, even
where it is not finite. Letters: N rows, B rows of data, K further rewards, C F H W latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from rlvid.algorithms.flow_matching import flow_matching_loss
from rlvid.config.algorithm import SelectiveKlConfig

Direction = Literal["others_high", "main_high"]


def added(loss: Tensor, term: Tensor, *, weight: float) -> Tensor:
    """Return loss + weight term, or the very `loss` where the weight is 0."""
    if weight < 0.0:
        raise ValueError(f"regulariser: weight: expected at least 0, got {weight}.")
    return loss if weight == 0.0 else loss + weight * term


def data_loss(velocity: Tensor, clean: Tensor, noise: Tensor, *, coefficient: float) -> Tensor:
    """Return coefficient times the flow-matching loss of rows of data, [B] float32.

    A batch of its own beside the policy loss: divide its sum by the rows of data over all ranks, as
    the policy's by its trained rows.

    Args:
        velocity: [B, C, F, H, W] of the policy, with gradient, at add_noise(clean, noise, sigma).
        clean: latents of data; DDRL found samples of the first policy good enough.
        noise: [B, C, F, H, W].
        coefficient: above 0; with 0 leave the forward out.
    """
    if coefficient <= 0.0:
        raise ValueError(
            f"data_loss: coefficient: expected above 0, got {coefficient}. With 0 do not forward "
            "the data at all."
        )
    return coefficient * flow_matching_loss(velocity, clean, noise)


def velocity_distance(velocity: Tensor, other_velocity: Tensor) -> Tensor:
    """Return the mean square of velocity - other_velocity, [N], the pull of the likelihood-free.

    DiffusionNFT adds 1e-4 of it to the frozen policy, AWM 1e-4 to 3e-3. Up to a factor of the noise
    level it is the KL of a stochastic step (`rlvid.algorithms.kl`).
    """
    return (velocity - other_velocity.detach()).square().flatten(1).mean(dim=1)


def disagreeing_rows(
    main: Tensor,
    others: Tensor,
    *,
    frac: float,
    direction: Direction = "others_high",
) -> Tensor:
    """Return the rows on which the rewards disagree most, [N] bool.

    Each reward becomes a rank in [0, 1], ties sharing theirs; the disagreement of a row is its mean
    rank under the other rewards minus its rank under the main one. `others_high` is Astrolabe's as
    coded: pull where the main reward finds a video bad that the others find good. `main_high` is
    the guard against over-optimising the main reward. Only rows that disagree in that direction
    count, so the share may not be reached.

    Args:
        main: [N] the reward that is optimised.
        others: [K, N] further rewards.
        frac: share of the rows, in [0, 1], rounded up.
    """
    if not 0.0 <= frac <= 1.0:
        raise ValueError(f"selective KL: frac: expected in [0, 1], got {frac}.")
    if others.dim() != 2 or others.shape[0] < 1 or others.shape[1:] != main.shape:
        raise ValueError(
            f"selective KL: others: expected [K, {main.numel()}] with K >= 1, got "
            f"{list(others.shape)}. With one reward there is nothing to disagree with."
        )
    if not (main.isfinite().all() and others.isfinite().all()):
        raise ValueError("selective KL: expected finite rewards; leave out rows that lack one.")
    gap = torch.stack([_ranks(row) for row in others]).mean(dim=0) - _ranks(main)
    gap = gap if direction == "others_high" else -gap
    # The 1e-9 keeps 0.1 * 30 from counting as 3.0000001.
    count = math.ceil(frac * len(main) - 1e-9)
    selected = torch.zeros_like(main, dtype=torch.bool)
    selected[torch.argsort(gap, descending=True, stable=True)[:count]] = True
    return selected & (gap > 0.0)


def pulled_rollouts(
    scores: Mapping[str, Tensor], weights: Mapping[str, float], config: SelectiveKlConfig | None
) -> Tensor | None:
    """Return the rollouts of a step that the KL acts on, [P, G] bool; None is all of them.

    A rollout that lacks a score cannot be ranked, and is none of them. The mean of the pull stays
    one over all trained rows, so the coefficient means the same whatever the share; Astrolabe's
    code takes the mean over the selected rows of each micro-batch.

    Args:
        scores: scorer to [P, G], NaN where missing; of all groups of the step.
        weights: scorer to its weight; of a negative one lower scores are better.
    """
    if config is None:
        return None
    better = {
        name: math.copysign(1.0, weights[name]) * table.double().cpu().flatten()
        for name, table in scores.items()
    }
    main = better.pop(config.main)
    others = torch.stack(list(better.values()))
    known = main.isfinite() & others.isfinite().all(dim=0)
    pulled = torch.zeros_like(known)
    if known.any():
        pulled[known] = disagreeing_rows(
            main[known], others[:, known], frac=config.frac, direction=config.direction
        )
    return pulled.view_as(scores[config.main])


def selective_kl(kl: Tensor, selected: Tensor | None) -> Tensor:
    """Return kl on the selected rows and exactly 0, without gradient, on the others, [N].

    Where nothing was selected, None, it is the very `kl`.
    """
    return kl if selected is None else torch.where(selected, kl, torch.zeros_like(kl))


def _ranks(rewards: Tensor) -> Tensor:
    """[N] -> share of the other rows that lie below, ties counting half, [N] float64 in [0, 1]."""
    below = (rewards[None, :] < rewards[:, None]).double().sum(dim=1)
    equal = (rewards[None, :] == rewards[:, None]).double().sum(dim=1) - 1.0
    return (below + 0.5 * equal) / max(len(rewards) - 1, 1)
