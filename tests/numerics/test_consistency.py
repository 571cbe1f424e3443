"""Consistency distillation where trajectories are known: the ODE of Gaussian data in closed form.

For data N(m, s^2) the ODE keeps the standardised state, so a state x at sigma ends at
m + s (x - (1 - sigma) m) / sqrt((1 - sigma)^2 s^2 + sigma^2). Rows are [B, 2, F, 1, 1], each frame
at a level of its own, as blocks of a causal student are.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.consistency import consistency_answer, consistency_loss, teacher_step

MEAN, SPREAD = 0.4, 0.7
SHAPE = (6, 2, 3, 1, 1)


def spread_at(level: Tensor) -> Tensor:
    return ((1.0 - level).square() * SPREAD**2 + level.square()).sqrt()


def end_of(latents: Tensor, level: Tensor) -> Tensor:
    """The exact consistency function."""
    return MEAN + SPREAD * (latents - (1.0 - level) * MEAN) / spread_at(level)


def state_at(end: Tensor, level: Tensor) -> Tensor:
    """Its inverse: the state from which the ODE ends at `end`."""
    return (1.0 - level) * MEAN + spread_at(level) * (end - MEAN) / SPREAD


def velocity(latents: Tensor, level: Tensor) -> Tensor:
    """E[noise - clean | x] of the data."""
    gain = (1.0 - level) * SPREAD**2 / spread_at(level).square()
    clean = MEAN + gain * (latents - (1.0 - level) * MEAN)
    return (latents - clean) / level


def answer_of(latents: Tensor, level: Tensor) -> Tensor:
    """f of a student whose velocity points to the exact end."""
    safe = level.clamp(min=1e-9)
    return consistency_answer((latents - end_of(latents, level)) / safe, latents, level)


def draws(num_levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, and two neighbouring levels of an even schedule, drawn for each frame."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    schedule = torch.linspace(1.0, 0.0, num_levels + 1, dtype=torch.float64)
    places = torch.arange(SHAPE[0] * SHAPE[2]).reshape(SHAPE[0], 1, SHAPE[2], 1, 1) % num_levels
    return latents, schedule[places], schedule[places + 1]


def test_exact_function_has_no_loss_along_exact_trajectories() -> None:
    latents, level, level_next = draws(8)
    neighbour = state_at(end_of(latents, level), level_next)
    loss = consistency_loss(answer_of(latents, level), answer_of(neighbour, level_next))
    assert float(loss.max()) < 1e-20


def test_answer_at_level_zero_is_the_state_itself() -> None:
    """The boundary condition, whatever the network says there."""
    latents, _, _ = draws(8)
    anything = 1e6 * torch.ones_like(latents)
    assert torch.equal(consistency_answer(anything, latents, torch.zeros(6, 1, 3, 1, 1)), latents)


def test_loss_of_the_exact_function_falls_with_the_fourth_power_of_the_step() -> None:
    """An Euler step is off by its square, and the loss is the square of that."""
    losses = []
    for num_levels in (50, 100):
        latents = draws(50)[0]
        level = torch.full((6, 1, 3, 1, 1), 0.6, dtype=torch.float64)
        level_next = level - 1.0 / num_levels
        neighbour = teacher_step(velocity(latents, level), latents, level, level_next)
        answer = answer_of(latents, level)
        losses.append(float(consistency_loss(answer, answer_of(neighbour, level_next)).mean()))
    assert losses[0] / losses[1] == pytest.approx(16.0, rel=0.15)


@pytest.mark.parametrize("num_levels", [1, 5])
def test_ends_of_the_teachers_own_steps_have_no_loss(num_levels: int) -> None:
    """So that is what the student becomes: the end of the Euler trajectory, not of the ODE."""

    def euler_end(latents: Tensor, place: int, schedule: Tensor) -> Tensor:
        for here in range(place, num_levels):
            level, level_next = schedule[here], schedule[here + 1]
            latents = teacher_step(velocity(latents, level), latents, level, level_next)
        return latents

    schedule = torch.linspace(1.0, 0.0, num_levels + 1, dtype=torch.float64)
    latents = draws(8)[0]
    for place in range(num_levels):
        level, level_next = schedule[place], schedule[place + 1]
        neighbour = teacher_step(velocity(latents, level), latents, level, level_next)
        target = euler_end(neighbour, place + 1, schedule)
        assert float(consistency_loss(euler_end(latents, place, schedule), target).max()) == 0.0


def test_only_the_higher_level_is_trained() -> None:
    answer, target = (torch.ones(SHAPE, requires_grad=True) for _ in range(2))
    loss = consistency_loss(answer, 3.0 * target)
    assert torch.equal(loss, torch.full((6,), 4.0))
    of_answer, of_target = torch.autograd.grad(loss.sum(), (answer, target), allow_unused=True)
    assert torch.equal(of_answer, torch.full(SHAPE, -4.0 / 6.0))
    assert of_target is None
