"""The noise levels of a sampler, and of training, which draws its levels where sampling visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Level = TypeVar("Level", float, Tensor)


@dataclass(frozen=True, slots=True)
class LevelTable:
    """The noise levels of a scheduler that has no shift, or more than one: as many of its steps as
    there is use for, and linear in between."""

    levels: tuple[float, ...]
    """[N+1] rising from 0 to 1: the level behind which j of N steps are left."""

    def at(self, u: Tensor) -> Tensor:
        """Return the levels at even times u in [0, 1], of any shape; in the dtype of u."""
        levels = torch.tensor(self.levels, dtype=torch.float64, device=u.device)
        place = u.double() * (len(levels) - 1)
        below = place.floor().clamp(0, len(levels) - 2).long()
        risen = (place - below) * (levels[below + 1] - levels[below])
        return (levels[below] + risen).to(u.dtype)


Shift = float | LevelTable
"""How even times become noise levels: a time shift, or a scheduler's table."""


def shifted(u: Level, shift: Shift) -> Level:
    """Return the noise levels of even times u in [0, 1]; 1 is pure noise.

    sigma = shift u / (1 + (shift - 1) u) (Stable Diffusion 3, arXiv:2403.03206), or what the table
    has there.
    """
    if not isinstance(shift, LevelTable):
        return shift * u / (1.0 + (shift - 1.0) * u)
    if isinstance(u, Tensor):
        return shift.at(u)
    return float(shift.at(torch.tensor(u, dtype=torch.float64)))


def shifted_sigmas(num_steps: int, shift: float) -> tuple[float, ...]:
    """Return num_steps + 1 descending noise levels; the first is just below 1, the last is 0.

    sigma = shift u / (1 + (shift - 1) u), with u falling evenly from 0.999 to 0: Wan's schedule of
    1000 training timesteps, as Flash-GRPO samples it (arXiv:2605.15980, released code). It starts
    below 1 because Flow-SDE's noise is infinite at sigma = 1.
    """
    if num_steps < 1:
        raise ValueError(f"shifted_sigmas: num_steps must be at least 1, got {num_steps}")
    if shift <= 0.0:
        raise ValueError(f"shifted_sigmas: shift must be positive, got {shift}")
    uniform = (0.999 * (1.0 - j / num_steps) for j in range(num_steps + 1))
    return tuple(shifted(u, shift) for u in uniform)
