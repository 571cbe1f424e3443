"""Few-step sampling against its closed form, and where its gradient comes from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlvid.flow.causal_ode import few_step_trajectories, ode_schedule
from rlvid.flow.few_step import denoise_to_exit, fresh_noise, student_sigmas

SIGMAS = student_sigmas((1.0, 0.75, 0.5, 0.25), 5.0)
SHAPE = (2, 1, 3, 2, 2)


class Gaussian:
    """Velocity of data N(mean, spread^2), times a weight of 1 that shows what is trained."""

    def __init__(self, mean: float, spread: float) -> None:
        self.mean, self.spread = mean, spread
        self.weight = torch.ones((), requires_grad=True)
        self.seen: list[tuple[float, bool]] = []

    def __call__(self, latents: Tensor, sigma: Tensor) -> Tensor:
        level = float(sigma[0])
        self.seen.append((level, torch.is_grad_enabled()))
        variance = (1.0 - level) ** 2 * self.spread**2 + level**2
        centred = latents - (1.0 - level) * self.mean
        clean = self.mean + (1.0 - level) * self.spread**2 / variance * centred
        return self.weight * (latents - clean) / level


def noise(level: int, *, rows: int = 2) -> Tensor:
    return fresh_noise(range(rows), SHAPE[1:], 0, level)


def test_levels_are_self_forcings() -> None:
    """[1000, 750, 500, 250] at shift 5, as its code prints them."""
    assert pytest.approx((1.0, 0.9375, 0.833333, 0.625), abs=1e-6) == SIGMAS


def test_samples_are_a_function_of_their_seeds() -> None:
    velocity = Gaussian(0.5, 0.3)
    both = denoise_to_exit(velocity, noise(0), SIGMAS, step_noise=noise)
    again = denoise_to_exit(velocity, noise(0), SIGMAS, step_noise=noise)
    alone = denoise_to_exit(
        velocity, noise(0)[:1], SIGMAS, step_noise=lambda level: noise(level, rows=1)
    )
    assert torch.equal(both, again)
    assert torch.equal(both[:1], alone)
    assert not torch.equal(both[0], both[1])


def test_few_steps_keep_the_mean_and_lose_spread_as_computed() -> None:
    """Variance by the recursion Var' = k^2 ((1 - s)^2 Var + s^2), k the posterior's gain."""
    velocity, rows = Gaussian(0.5, 0.3), 20000
    samples = denoise_to_exit(
        velocity, noise(0, rows=rows), SIGMAS, step_noise=lambda level: noise(level, rows=rows)
    )
    variance = 0.0
    for sigma in SIGMAS:
        gain = (1.0 - sigma) * 0.09 / ((1.0 - sigma) ** 2 * 0.09 + sigma**2)
        variance = gain**2 * ((1.0 - sigma) ** 2 * variance + sigma**2)
    count = samples.numel()
    assert float(samples.detach().mean()) == pytest.approx(0.5, abs=5 * variance**0.5 / count**0.5)
    assert float(samples.detach().var()) == pytest.approx(variance, rel=5 * (2 / count) ** 0.5)


@pytest.mark.parametrize("exit_step", range(4))
def test_gradient_is_that_of_the_exit_level_alone(exit_step: int) -> None:
    """Equal to the gradient of one forward at the state that was reached, which is a constant."""
    velocity = Gaussian(0.5, 0.3)
    clean = denoise_to_exit(velocity, noise(0), SIGMAS, step_noise=noise, exit_step=exit_step)
    (found,) = torch.autograd.grad(clean.sum(), velocity.weight)
    levels, with_gradient = zip(*velocity.seen, strict=True)
    assert levels == pytest.approx(SIGMAS[: exit_step + 1])
    assert with_gradient == (*[False] * exit_step, True)
    states = few_step_trajectories(velocity, noise(0), SIGMAS, step_noise=noise).states
    state = states[:, exit_step]
    at_exit = velocity(state, torch.full((2,), SIGMAS[exit_step]))
    (expected,) = torch.autograd.grad((state - SIGMAS[exit_step] * at_exit).sum(), velocity.weight)
    torch.testing.assert_close(found, expected)


def test_trajectory_ends_where_the_sampler_does() -> None:
    velocity = Gaussian(0.5, 0.3)
    made = few_step_trajectories(velocity, noise(0), SIGMAS, step_noise=noise)
    sampled = denoise_to_exit(velocity, noise(0), SIGMAS, step_noise=noise)
    assert torch.equal(made.clean, sampled)
    assert torch.equal(made.states[:, 0], noise(0))


def test_teachers_levels_hold_the_students() -> None:
    schedule = ode_schedule(SIGMAS, 48, 5.0)
    assert len(schedule) == 49  # quarters are among forty-eighths
    assert set(SIGMAS) <= set(schedule)
    assert schedule[0] == 1.0
    assert schedule[-1] == 0.0
    assert len(ode_schedule(SIGMAS, 10, 5.0)) == 13  # a half is among tenths, two quarters are not


def test_an_exit_behind_the_last_level_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of 4 levels from 0, got 4"):
        denoise_to_exit(Gaussian(0, 1), noise(0), SIGMAS, step_noise=noise, exit_step=4)
