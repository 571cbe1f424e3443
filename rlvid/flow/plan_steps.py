"""A stochastic step as a rollout takes and records it; for the samplers of step plans."""

from __future__ import annotations

import torch
from torch import Tensor

from rlvid.flow.sde import SdeStep, sde_step
from rlvid.records import StepPlan

RecordedStep = tuple[Tensor, Tensor, Tensor, Tensor]
"""State before, state after and mean, [B, C, F, H, W] each, and log-probability [B]."""


def sigma_rows(sigma: float, like: Tensor) -> Tensor:
    """Return sigma [B] float32 for latents [B, ...]."""
    return torch.full((like.shape[0],), sigma, dtype=torch.float32, device=like.device)


def noisy_step(
    predicted: Tensor,
    latents: Tensor,
    plan: StepPlan,
    step: int,
    step_noise: Tensor,
    dtype: torch.dtype,
) -> SdeStep:
    """Take stochastic step `step` of a plan, scored as it will be read.

    Args:
        predicted: velocity [B, C, F, H, W] at `latents`, which are of `dtype` already.
        step_noise: [B, C, F, H, W], standard normal.
        dtype: in which the next state is stored: it is rounded before it is scored.
    """
    sigma = sigma_rows(plan.sigmas[step], latents)
    sigma_next = sigma_rows(plan.sigmas[step + 1], latents)
    taken = sde_step(predicted, latents, sigma, sigma_next, noise=plan.noise, step_noise=step_noise)
    if dtype == torch.float32:
        return taken
    rounded = taken.next_latents.to(dtype).float()
    return sde_step(predicted, latents, sigma, sigma_next, noise=plan.noise, next_latents=rounded)
