"""One denoising step: sampling and scoring agree, and the density is the one it claims."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from rlvid.flow.sde import NOISE_SCHEDULES, euler_step, gradient_scale, sde_step, step_std
from rlvid.flow.sigmas import shifted_sigmas
from rlvid.records import NoiseSettings

SIGMAS = shifted_sigmas(20, 3.0)
SCHEDULES = sorted(NOISE_SCHEDULES)


def settings(schedule: str, eta: float = 0.7) -> NoiseSettings:
    return NoiseSettings(schedule=schedule, eta=eta, truncation=0.45, first_sigma=SIGMAS[1])


def a_step(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """velocity, latents, sigma, sigma_next, step_noise of denoising steps 0, 3 and 12."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, 3, 4, 4)
    velocity, latents, noise = (
        torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3)
    )
    sigma = torch.tensor([SIGMAS[j] for j in (0, 3, 12)], dtype=dtype)
    sigma_next = torch.tensor([SIGMAS[j + 1] for j in (0, 3, 12)], dtype=dtype)
    return velocity, latents, sigma, sigma_next, noise


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_noise_is_the_euler_step(schedule: str) -> None:
    """At eta = 0 the step is the ODE's, exactly: eta 0 means the pretrained sampler."""
    velocity, latents, sigma, sigma_next, noise = a_step()
    step = sde_step(
        velocity, latents, sigma, sigma_next, noise=settings(schedule, 0.0), step_noise=noise
    )
    assert torch.equal(step.next_latents, euler_step(velocity, latents, sigma, sigma_next))
    assert torch.equal(step.log_prob, torch.zeros(3))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_scoring_returns_the_recorded_log_prob_bit_for_bit(schedule: str) -> None:
    """One function samples and scores; any difference would be a ratio that is not 1."""
    velocity, latents, sigma, sigma_next, noise = a_step()
    taken = sde_step(
        velocity, latents, sigma, sigma_next, noise=settings(schedule), step_noise=noise
    )
    scored = sde_step(
        velocity,
        latents,
        sigma,
        sigma_next,
        noise=settings(schedule),
        next_latents=taken.next_latents,
    )
    assert torch.equal(scored.log_prob, taken.log_prob)
    assert torch.equal(scored.mean, taken.mean)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_log_prob_of_a_row_does_not_depend_on_its_batch(schedule: str) -> None:
    """Learner and actor batch rows differently; the step itself must not notice."""
    velocity, latents, sigma, sigma_next, noise = a_step()
    whole = sde_step(
        velocity, latents, sigma, sigma_next, noise=settings(schedule), step_noise=noise
    )
    for row in range(3):
        one = slice(row, row + 1)
        alone = sde_step(
            velocity[one],
            latents[one],
            sigma[one],
            sigma_next[one],
            noise=settings(schedule),
            step_noise=noise[one],
        )
        assert torch.equal(alone.log_prob, whole.log_prob[one])


def test_log_prob_of_a_large_row_does_not_depend_on_threads_and_batch() -> None:
    """torch splits a lone row's sum over threads and a batch's not: in float32 the results differ.

    Two threads and rows the size of a short clip's latents; this is why rows are summed in float64.
    """
    noise = torch.randn(6, 16, 3, 60, 104, generator=torch.Generator().manual_seed(0))

    def log_prob(noise: Tensor) -> Tensor:
        sigma, sigma_next = (torch.full((noise.shape[0],), SIGMAS[j]) for j in (3, 4))
        return sde_step(
            noise * 0.5, noise, sigma, sigma_next, noise=settings("flash"), step_noise=noise
        ).log_prob

    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole = log_prob(noise)
        alone = torch.cat([log_prob(noise[row : row + 1]) for row in range(6)])
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(alone, whole)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "cps"])
def test_log_prob_is_that_of_a_normal(schedule: str) -> None:
    """The sum over elements of torch's Normal, the reference for the formula."""
    velocity, latents, sigma, sigma_next, noise = a_step(torch.float64)
    step = sde_step(
        velocity, latents, sigma, sigma_next, noise=settings(schedule), step_noise=noise
    )
    normal = Normal(step.mean, step.std.reshape(-1, 1, 1, 1, 1))
    expected = normal.log_prob(step.next_latents).flatten(1).sum(dim=1)
    torch.testing.assert_close(step.log_prob, expected, rtol=1e-12, atol=1e-9)


def test_cps_log_prob_is_the_published_one() -> None:
    """-(next - mean)^2 without normaliser: a Normal of std sqrt(1/2) up to a constant."""
    velocity, latents, sigma, sigma_next, noise = a_step(torch.float64)
    step = sde_step(velocity, latents, sigma, sigma_next, noise=settings("cps"), step_noise=noise)
    normal = Normal(step.mean, math.sqrt(0.5))
    expected = normal.log_prob(step.next_latents) + 0.5 * math.log(math.pi)
    torch.testing.assert_close(step.log_prob, expected.flatten(1).sum(dim=1), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_log_prob_passes_gradcheck(schedule: str) -> None:
    """The gradient the policy gets is that of the number it is shown."""
    velocity, latents, sigma, sigma_next, noise = (t[1:] for t in a_step(torch.float64))
    recorded = sde_step(
        velocity, latents, sigma, sigma_next, noise=settings(schedule), step_noise=noise
    ).next_latents

    def log_prob(velocity: Tensor) -> Tensor:
        return sde_step(
            velocity,
            latents,
            sigma,
            sigma_next,
            noise=settings(schedule),
            next_latents=recorded,
        ).log_prob

    assert torch.autograd.gradcheck(log_prob, velocity.requires_grad_())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradient_of_log_prob_is_noise_times_lambda(schedule: str) -> None:
    """What makes 1 / lambda the right weight: d log_prob / d velocity = -w * lambda."""
    velocity, latents, sigma, sigma_next, noise = a_step(torch.float64)
    velocity.requires_grad_()
    chosen = settings(schedule)
    recorded = sde_step(
        velocity, latents, sigma, sigma_next, noise=chosen, step_noise=noise
    ).next_latents
    log_prob = sde_step(
        velocity, latents, sigma, sigma_next, noise=chosen, next_latents=recorded
    ).log_prob
    (gradient,) = torch.autograd.grad(log_prob.sum(), velocity)
    scale = gradient_scale(chosen, sigma, sigma_next).reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(gradient, -noise * scale, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("schedule", ["flow", "dance", "flash", "truncated"])
def test_lambda_is_the_papers_formula(schedule: str) -> None:
    """sqrt(D) / g + g sqrt(D) (1 - sigma) / (2 sigma), written out from its own g."""
    sigma = torch.tensor(SIGMAS[2:19], dtype=torch.float64)
    sigma_next = torch.tensor(SIGMAS[3:20], dtype=torch.float64)
    root = (sigma - sigma_next).sqrt()
    odds = (sigma / (1.0 - sigma)).sqrt()
    g = {
        "flow": 0.7 * odds,
        "dance": torch.full_like(sigma, 0.7),
        "flash": 0.7 * SIGMAS[1] * sigma,
        "truncated": torch.minimum(0.7 * odds, 0.45 / root),
    }[schedule]
    expected = root / g + g * root * (1.0 - sigma) / (2.0 * sigma)
    actual = gradient_scale(settings(schedule), sigma, sigma_next)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0.0)


def test_sage_variance_is_the_integral_of_flow_sde() -> None:
    """SAGE's closed form against a fine trapezoid of eta^2 sigma / (1 - sigma) over the step."""
    sigma = torch.tensor(SIGMAS[1:19], dtype=torch.float64)
    sigma_next = torch.tensor(SIGMAS[2:20], dtype=torch.float64)
    for row, std in enumerate(step_std(settings("sage"), sigma, sigma_next)):
        grid = torch.linspace(float(sigma_next[row]), float(sigma[row]), 20001, dtype=torch.float64)
        integral = torch.trapezoid(0.49 * grid / (1.0 - grid), grid)
        torch.testing.assert_close(std.square(), integral, rtol=1e-6, atol=0.0)


def test_sage_equals_flow_on_the_step_where_g_is_held() -> None:
    """Above first_sigma both hold g constant; its integral is g^2 times the step's length."""
    sigma, sigma_next = (torch.tensor([value], dtype=torch.float64) for value in SIGMAS[:2])
    sage = step_std(settings("sage"), sigma, sigma_next)
    flow = step_std(settings("flow"), sigma, sigma_next)
    torch.testing.assert_close(sage, flow, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_step_at_pure_noise_is_finite(schedule: str) -> None:
    """A schedule that starts at exactly 1 must not meet Flow-SDE's singularity."""
    sigma, sigma_next = torch.tensor([1.0]), torch.tensor([SIGMAS[1]])
    assert torch.isfinite(step_std(settings(schedule), sigma, sigma_next)).all()


def test_scoring_a_deterministic_step_is_refused() -> None:
    """It has no density; scoring it as if it had one cost a reproduction 1.25 of reward."""
    velocity, latents, sigma, _, _ = a_step()
    with pytest.raises(ValueError, match="deterministic"):
        sde_step(
            velocity,
            latents,
            sigma,
            torch.zeros(3),
            noise=settings("cps"),
            next_latents=latents,
        )


def test_sampling_and_scoring_at_once_is_refused() -> None:
    """Neither or both would have to guess what is asked."""
    velocity, latents, sigma, sigma_next, noise = a_step()
    with pytest.raises(ValueError, match="either"):
        sde_step(velocity, latents, sigma, sigma_next, noise=settings("flash"))
    with pytest.raises(ValueError, match="either"):
        sde_step(
            velocity,
            latents,
            sigma,
            sigma_next,
            noise=settings("flash"),
            next_latents=latents,
            step_noise=noise,
        )
