"""The stochastic sampler draws from the distribution of the deterministic one.

With Gaussian data the true velocity is linear in the state, so the variance of the state can be
carried through the steps exactly: no sampling error, only that of the step size.
"""

from __future__ import annotations

import pytest
import torch

from rlvid.flow.sde import NOISE_SCHEDULES, sde_step
from rlvid.flow.sigmas import shifted_sigmas
from rlvid.records import NoiseSettings

SDE_SCHEDULES = sorted(set(NOISE_SCHEDULES) - {"cps"})


def variances(
    schedule: str,
    eta: float,
    num_steps: int,
    *,
    data_variance: float = 1.0,
    stochastic: range | None = None,
) -> tuple[list[float], list[float]]:
    """Return (variance of the state, true variance) after each step.

    The state is one number x with v = E[noise - clean | x] = x (sigma - (1 - sigma) data_variance)
    / var; its response to x = 1 is the factor of a linear step. The last step is Euler, as in every
    plan, and so are steps outside `stochastic`.
    """
    sigmas = shifted_sigmas(num_steps, 3.0)
    variance = (1.0 - sigmas[0]) ** 2 * data_variance + sigmas[0] ** 2
    got, true = [], []
    for j in range(num_steps):
        sigma, sigma_next = (torch.tensor([s], dtype=torch.float64) for s in sigmas[j : j + 2])
        here = (1.0 - sigma) ** 2 * data_variance + sigma**2
        velocity = ((sigma - (1.0 - sigma) * data_variance) / here).reshape(1, 1)
        is_stochastic = j < num_steps - 1 and (stochastic is None or j in stochastic)
        noise = NoiseSettings(
            schedule=schedule,
            eta=eta if is_stochastic else 0.0,
            truncation=0.45,
            first_sigma=sigmas[1],
        )
        one = torch.ones(1, 1, dtype=torch.float64)
        step = sde_step(
            velocity, one, sigma, sigma_next, noise=noise, step_noise=torch.zeros_like(one)
        )
        variance = float(step.mean) ** 2 * variance + float(step.std) ** 2
        got.append(variance)
        true.append((1.0 - sigmas[j + 1]) ** 2 * data_variance + sigmas[j + 1] ** 2)
    return got, true


@pytest.mark.parametrize("schedule", SDE_SCHEDULES)
@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_sde_keeps_the_marginals(schedule: str, eta: float) -> None:
    """Every noise must sample what the ODE samples: variance (1 - sigma)^2 + sigma^2.

    Tolerance: the error is that of the Euler step, first order in the step size, so four times the
    steps must leave at most 0.4 of it, and at 800 steps less than 0.6 % (the ODE's own is 0.45 %).
    """
    (*_, coarse), (*_, true_coarse) = variances(schedule, eta, 200)
    (*_, fine), (*_, true_fine) = variances(schedule, eta, 800)
    error = abs(fine / true_fine - 1.0)
    assert error < 0.4 * abs(coarse / true_coarse - 1.0)
    assert error < 0.006


@pytest.mark.parametrize("schedule", SDE_SCHEDULES)
def test_sde_keeps_the_marginals_on_the_way(schedule: str) -> None:
    """Also at every noise level between, where rollouts are trained.

    Tolerance at eta 0.7, 800 steps: 4 % at all levels. Near sigma = 1 Flow-SDE's noise per step
    does not shrink with the step size (g^2 D tends to eta^2 / j at step j); 3.5 % arise there.
    """
    got, true = variances(schedule, 0.7, 800)
    assert max(abs(g / t - 1.0) for g, t in zip(got, true, strict=True)) < 0.04


@pytest.mark.parametrize("schedule", sorted(NOISE_SCHEDULES))
def test_one_stochastic_step_leaves_the_video_distribution_alone(schedule: str) -> None:
    """Isotemporal grouping trains one step; its noise must not show in the finished video.

    Data variance 0.25, 20 steps, step 3 stochastic. Tolerance 0.015 of the data variance 0.25
    against the ODE's result; the step-size error of the ODE itself is 0.06.
    """
    eta = {"dance": 0.3, "cps": 0.3}.get(schedule, 0.7)
    (*_, ode), _ = variances(schedule, 0.0, 20, data_variance=0.25)
    (*_, got), _ = variances(schedule, eta, 20, data_variance=0.25, stochastic=range(3, 4))
    assert abs(got - ode) < 0.015


@pytest.mark.parametrize("eta", [0.3, 0.8, 1.0])
def test_cps_keeps_the_noise_power_exactly(eta: float) -> None:
    """CPS's claim: if the model knows the clean video, noise at sigma has variance sigma^2.

    Data variance 0 is that case (velocity = x / sigma). Tolerance: float64 rounding of 100 steps.
    """
    got, true = variances("cps", eta, 100, data_variance=0.0)
    assert max(abs(g / t - 1.0) for g, t in zip(got[:-1], true[:-1], strict=True)) < 1e-10
