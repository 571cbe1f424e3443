"""Rollouts that leave one trajectory at different steps (TempFlow-GRPO, arXiv:2508.04324).

Every initial noise has its ODE. At each trained step branches leave it by a stochastic step, and go
on by an ODE of their own, so that what differs among the videos of a step is that step's noise. The
trajectories run first, by themselves: the velocity of a trained step then comes from a batch of the
noises alone, which serves all branches of the step, in the learner too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlvid.flow.plan_steps import RecordedStep, noisy_step, sigma_rows
from rlvid.flow.sde import euler_step
from rlvid.records import StepPlan

if TYPE_CHECKING:
    from rlvid.flow.sampler import VelocityFunction


def sample_branches(
    velocity: VelocityFunction,
    plan: StepPlan,
    latents: Tensor,
    generators: Sequence[torch.Generator],
    dtype: torch.dtype,
) -> tuple[Tensor, RecordedStep, int]:
    """Return the videos [G, C, F, H, W], the step of its own of each rollout, and the forwards.

    Args:
        plan: with `own_steps`.
        latents: [num_noises, C, F, H, W], the initial noises.
        generators: [G], for the noise of each rollout's step.
        dtype: of the stored states (`sampler.sample_group`).
    """
    starts, num_forwards = _trajectories(velocity, plan, latents, dtype)
    noise_of = torch.tensor([plan.noise_index(g, len(generators)) for g in range(len(generators))])
    own = torch.tensor(plan.own_steps)
    parted: list[Tensor] = []
    recorded: list[RecordedStep] = []
    branches = latents[:0]
    for step in range(min(starts), plan.num_steps):
        if len(branches):
            branches = _ode_step(velocity, plan, branches, step)[0]
            num_forwards += len(branches)
        if step not in starts:
            continue
        rollouts = (own == step).nonzero().flatten()
        state, predicted = (part[noise_of[rollouts].to(part.device)] for part in starts[step])
        drawn = [torch.randn(state.shape[1:], generator=generators[g]) for g in rollouts.tolist()]
        noise = torch.stack(drawn).to(state.device)
        taken = noisy_step(predicted, state, plan, step, noise, dtype)
        branches = torch.cat([branches, taken.next_latents])
        parted.append(rollouts)
        recorded.append((state, taken.next_latents, taken.mean, taken.log_prob))
    in_order = torch.cat(parted).argsort().to(latents.device)
    before, after, mean, log_prob = (torch.cat(part) for part in zip(*recorded, strict=True))
    of_each = (before[in_order], after[in_order], mean[in_order], log_prob[in_order])
    return branches[in_order], of_each, num_forwards


def _trajectories(
    velocity: VelocityFunction, plan: StepPlan, latents: Tensor, dtype: torch.dtype
) -> tuple[dict[int, tuple[Tensor, Tensor]], int]:
    """Run the ODE of every noise up to the last trained step.

    Returns:
        State and velocity [num_noises, C, F, H, W] at each trained step, and the forwards.
    """
    starts: dict[int, tuple[Tensor, Tensor]] = {}
    last = plan.trained_steps[-1]
    for step in range(last + 1):
        if step in plan.trained_steps:
            latents = latents.to(dtype).float()
        following, predicted = _ode_step(velocity, plan, latents, step)
        if step in plan.trained_steps:
            starts[step] = (latents, predicted)
        latents = following
    return starts, (last + 1) * len(latents)


def _ode_step(
    velocity: VelocityFunction, plan: StepPlan, latents: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """Return latents after a step without noise, and the velocity that led there."""
    sigma = sigma_rows(plan.sigmas[step], latents)
    predicted = velocity(latents, sigma)
    sigma_next = sigma_rows(plan.sigmas[step + 1], latents)
    return euler_step(predicted, latents, sigma, sigma_next), predicted
