"""Trajectories that a causal student is regressed on: where the teacher was, and where it ended.

Letters: B clips, S levels of the student, N blocks, C F H W latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.flow.few_step import StepNoise
from rlvid.flow.predictions import predicted_clean
from rlvid.flow.sampler import VelocityFunction
from rlvid.flow.sde import euler_step
from rlvid.flow.self_forcing import BlockModel
from rlvid.flow.sigmas import Shift, shifted


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectories:
    """Of B clips."""

    states: Tensor
    """[B, S, C, F, H, W] at the student's levels."""
    clean: Tensor
    """[B, C, F, H, W], where they end."""


def ode_schedule(sigmas: Sequence[float], num_steps: int, shift: Shift) -> tuple[float, ...]:
    """Return descending levels from 1 to 0: `num_steps` even ones, shifted, and all of `sigmas`."""
    even = (1.0 - j / num_steps for j in range(num_steps + 1))
    levels = {shifted(u, shift) for u in even}
    return tuple(sorted(levels | set(sigmas), reverse=True))


@torch.no_grad()
def causal_trajectories(
    model: BlockModel,
    condition: Condition,
    negative: Condition,
    *,
    guidance_scale: float,
    sigmas: Sequence[float],
    schedule: Sequence[float],
    noise: Callable[[int], Tensor],
    num_blocks: int,
) -> Trajectories:
    """Generate clips block by block with the probability-flow ODE of a causal teacher.

    Causal Forcing (arXiv:2602.02214): the teacher must be causal, since a state of a bidirectional
    one depends on noise of the future that the student never sees.

    Args:
        condition: of B rows.
        negative: of 1 or B rows, of the empty prompt.
        sigmas: the student's S levels, all in `schedule`.
        schedule: of `ode_schedule`.
        noise: block to its start [B, C, F, H, W].
    """
    batch = condition.num_rows
    is_guided = guidance_scale != 1.0
    cache = model.open_cache(condition.joined(negative.expand(batch)) if is_guided else condition)

    def twice(rows: Tensor) -> Tensor:
        return torch.cat([rows, rows]) if is_guided else rows

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        found = model.block_velocity(twice(latents), twice(sigma), cache)
        if not is_guided:
            return found
        conditional, unconditional = found.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    states, blocks = [], []
    for block in range(num_blocks):
        visited, clean = _solve(velocity, noise(block), schedule, sigmas)
        states.append(visited)
        blocks.append(clean)
        if block + 1 < num_blocks:
            model.append_block(twice(clean), cache)
    return Trajectories(states=torch.cat(states, dim=3), clean=torch.cat(blocks, dim=2))


@torch.no_grad()
def few_step_trajectories(
    velocity: VelocityFunction, noise: Tensor, sigmas: Sequence[float], *, step_noise: StepNoise
) -> Trajectories:
    """Sample a few-step student and keep the state at each of its levels.

    No ODE: between levels the student is given fresh noise, as it was trained, so a state tells
    its end in part only, and what is regressed on the end at a high level learns the mean of ends.

    Args:
        noise: [B, C, F, H, W], the state at sigmas[0].
        step_noise: as in `rlvid.flow.few_step.denoise_to_exit`.
    """
    states, clean = [], noise
    for j, level in enumerate(sigmas):
        latents = noise if j == 0 else (1.0 - level) * clean + level * step_noise(j)
        sigma = torch.full((noise.shape[0],), level, device=noise.device)
        clean = predicted_clean(velocity(latents, sigma), latents, sigma)
        states.append(latents)
    return Trajectories(states=torch.stack(states, dim=1), clean=clean)


def _solve(
    velocity: VelocityFunction, latents: Tensor, schedule: Sequence[float], sigmas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the states at `sigmas`, [B, S, C, F, H, W], and the end of the Euler steps."""
    visited = {}
    for level, following in zip(schedule[:-1], schedule[1:], strict=True):
        if level in sigmas:
            visited[level] = latents
        sigma, sigma_next = (
            torch.full((latents.shape[0],), value, device=latents.device)
            for value in (level, following)
        )
        latents = euler_step(velocity(latents, sigma), latents, sigma, sigma_next)
    return torch.stack([visited[sigma] for sigma in sigmas], dim=1), latents
