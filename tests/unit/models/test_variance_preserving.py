"""The change of coordinates between variance-preserving diffusion and flow."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from torch import Tensor

from rlvid.flow.sampler import sample_ode
from rlvid.flow.sde import euler_step, per_row, sde_step
from rlvid.models.variance_preserving import (
    VariancePreserving,
    variance_preserving_state,
    velocity_of,
)
from rlvid.records import NoiseSettings

CLEAN_STD = 0.5


def make_scheduler() -> CogVideoXDDIMScheduler:
    return CogVideoXDDIMScheduler(
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def levels_of(scheduler: CogVideoXDDIMScheduler) -> VariancePreserving:
    return VariancePreserving(scheduler.alphas_cumprod)


def best_v(state: Tensor, alpha_squared: Tensor) -> Tensor:
    """Return the optimal v-prediction for clean latents N(0, CLEAN_STD^2), in closed form."""
    alpha, s = alpha_squared.sqrt(), (1.0 - alpha_squared).sqrt()
    variance = alpha_squared * CLEAN_STD**2 + s.square()
    return (alpha * s * (1.0 - CLEAN_STD**2) / variance).to(state.dtype) * state


def flow_velocity(latents: Tensor, sigma: Tensor) -> Tensor:
    level = per_row(sigma, latents)
    state = variance_preserving_state(latents, level)
    alpha_squared = (1.0 - level).square() / ((1.0 - level).square() + level.square())
    return velocity_of(best_v(state, alpha_squared), latents, level)


def test_timesteps_are_exact_at_their_own_levels_and_rise_between() -> None:
    """A timestep off by a rounding would be an input the model never saw."""
    levels = levels_of(make_scheduler())
    own = levels.sigmas.float()
    assert torch.equal(levels.timestep(own), torch.arange(1000.0))
    halfway = (own[1:].double() + own[:-1].double()) / 2.0
    torch.testing.assert_close(levels.timestep(halfway), torch.arange(999.0) + 0.5)


def test_levels_outside_of_the_table_take_its_ends() -> None:
    levels = levels_of(make_scheduler())
    assert levels.timestep(torch.tensor([0.0, 1.0])).tolist() == [0.0, 999.0]


def test_zero_terminal_snr_is_a_noise_level_of_one() -> None:
    """There x_t is the noise itself: the sampler starts where the pipeline starts."""
    levels = levels_of(make_scheduler())
    assert levels.sigmas[-1] == 1.0
    noise = torch.randn(2, 3)
    assert torch.equal(variance_preserving_state(noise, torch.tensor(1.0)), noise)


def test_state_and_velocity_are_those_of_clean_and_noise() -> None:
    """The definitions, at every timestep of the table."""
    scheduler = make_scheduler()
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1000, 5, generator=generator, dtype=torch.float64)
    timesteps = torch.arange(1000)
    state = scheduler.add_noise(clean, noise, timesteps)
    v = scheduler.get_velocity(clean, noise, timesteps)
    sigma = levels_of(scheduler).sigmas[:, None]
    flow_state = (1.0 - sigma) * clean + sigma * noise
    # The table rounds sigma to float32.
    torch.testing.assert_close(
        variance_preserving_state(flow_state, sigma), state, atol=1e-6, rtol=0.0
    )
    torch.testing.assert_close(
        velocity_of(v, flow_state, sigma), noise - clean, atol=1e-6, rtol=0.0
    )


@pytest.mark.parametrize("num_steps", [4, 50])
def test_ddim_is_euler_in_flow_coordinates(num_steps: int) -> None:
    """Every state along the way, not the last alone."""
    scheduler = make_scheduler()
    levels = levels_of(scheduler)
    scheduler.set_timesteps(num_steps)
    state = torch.randn(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    latents = state
    sigmas = [*levels.sigmas[scheduler.timesteps].float(), torch.tensor(0.0)]
    for index, timestep in enumerate(scheduler.timesteps):
        v = best_v(state, scheduler.alphas_cumprod[timestep])
        state = scheduler.step(v, int(timestep), state, return_dict=False)[0]
        sigma, sigma_next = sigmas[index][None], sigmas[index + 1][None]
        latents = euler_step(flow_velocity(latents, sigma), latents, sigma, sigma_next)
        expected = variance_preserving_state(latents, sigma_next)
        torch.testing.assert_close(state, expected, atol=2e-6, rtol=0.0)


@pytest.mark.parametrize("schedule", ["flow", "dance", "sage"])
def test_sde_steps_keep_the_marginals(schedule: str) -> None:
    """Clean latents N(0, 0.25): after the stochastic steps the clean end has their variance.

    The error of a standard deviation from 40 thousand samples is 0.35 %, and that of discretisation
    about 1 % at 200 steps.
    """
    noise = NoiseSettings(schedule=schedule, eta=0.5, first_sigma=0.995, truncation=1.0)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 1, 1, 100, 100, generator=generator)
    sigmas = torch.linspace(1.0, 0.0, 201).tolist()
    ode = sample_ode(flow_velocity, latents, sigmas)
    for sigma, sigma_next in pairwise(sigmas):
        rows, rows_next = torch.full((4,), sigma), torch.full((4,), sigma_next)
        latents = sde_step(
            flow_velocity(latents, rows),
            latents,
            rows,
            rows_next,
            noise=noise,
            step_noise=torch.randn(latents.shape, generator=generator),
        ).next_latents
    for sampled in (ode, latents):
        assert float(sampled.std()) == pytest.approx(CLEAN_STD, rel=0.02)
