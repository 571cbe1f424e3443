"""Ratios of policy to behaviour, and what keeps an update near the behaviour policy.

The *tempered* ratio is exp of the log-probability difference divided by the number of elements.
Every flow-matching GRPO uses it: a video has some 10^6 elements, so the plain ratio is 0 or
infinite after any update. Its clip ranges are therefore tiny, 1e-5 to 1e-2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlvid.flow.sde import SdeStep, transition
from rlvid.records import LearnerBatch


def mean_divergence(step: SdeStep, batch: LearnerBatch) -> Tensor:
    """Return KL of the policy's transition from the behaviour's [N], per element, in nats.

    mean((mean - behaviour_mean)^2) / (2 likelihood_std^2).
    """
    numbers = transition(batch.noise, batch.sigma, batch.sigma_next)
    squared = (step.mean - batch.behaviour_mean).square().flatten(1).mean(dim=1)
    return squared / (2.0 * numbers.likelihood_std.square()).to(squared.dtype)


def tempered_log_ratio(step: SdeStep, batch: LearnerBatch) -> Tensor:
    """Return (policy_log_prob - behaviour_log_prob) / num_elements, [N]."""
    num_elements = batch.latents[0].numel()
    return (step.log_prob - batch.behaviour_log_prob) / num_elements


def guard_log_ratio(step: SdeStep, batch: LearnerBatch) -> Tensor:
    """Return GRPO-Guard's log ratio [N] (arXiv:2510.22319).

    (tempered log ratio + b) * std with b the mean divergence: adding b removes the negative mean a
    log ratio has, multiplying by std makes its spread alike at all steps. For a log-probability
    with another std (CPS) the factor is likelihood_std^2 / std, which is std where they agree.
    """
    numbers = transition(batch.noise, batch.sigma, batch.sigma_next)
    spread = numbers.likelihood_std.square() / numbers.std
    centred = tempered_log_ratio(step, batch) + mean_divergence(step, batch)
    return centred * spread.to(centred.dtype)


def decoupled(
    log_ratio: Tensor, batch: LearnerBatch, cap: float | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Split the ratio of policy to behaviour at the proximal policy.

    Args:
        log_ratio: [N] of policy to behaviour, with gradient.
        cap: `algorithm.importance_cap`; None does not split.

    Returns:
        The ratio to clip [N], with gradient; its weight min(rho, cap) [N], None where it is exactly
        1 for all rows; and rho [N], proximal to behaviour, 1 where nothing is split.
    """
    if cap is None or batch.is_on_policy:
        return log_ratio.exp(), None, torch.ones_like(log_ratio.detach())
    proximal = batch.proximal_log_ratio
    if proximal is None:
        proximal = log_ratio.detach()
    rho = proximal.exp()
    return (log_ratio - proximal).exp(), rho.clamp(max=cap), rho


def clipped_policy_loss(
    ratio: Tensor, advantage: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """Return PPO's max(-A r, -A clip(r, 1 - c, 1 + c)) [N] and which rows are clipped [N] bool."""
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    loss = torch.maximum(-advantage * ratio, -advantage * clipped)
    is_clipped = ((advantage > 0.0) & (ratio > 1.0 + clip_range)) | (
        (advantage < 0.0) & (ratio < 1.0 - clip_range)
    )
    return loss, is_clipped


def masked_policy_loss(
    ratio: Tensor,
    advantage: Tensor,
    divergence: Tensor,
    threshold: float,
    *,
    judged: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return Flow-DPPO's loss [N] and which rows are masked [N] bool (arXiv:2606.11025).

    A row is dropped only if its divergence exceeds `threshold` and its gradient would still move it
    away: a good sample already more likely, or a bad one already less likely.

    Args:
        judged: [N] the ratio that says so, where it is not the one of the loss.
    """
    seen = ratio if judged is None else judged
    moves_away = ((advantage > 0.0) & (seen > 1.0)) | ((advantage < 0.0) & (seen < 1.0))
    is_masked = (divergence.detach() > threshold) & moves_away
    return torch.where(is_masked, 0.0, -advantage * ratio), is_masked
