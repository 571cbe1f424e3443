"""Schedules and the weights against the gradient scale."""

from __future__ import annotations

import pytest
import torch

from rlvid.config import RolloutConfig
from rlvid.flow.sde import gradient_scale
from rlvid.flow.sigmas import shifted_sigmas
from rlvid.flow.step_plans import make_step_plan
from rlvid.flow.step_weights import MEAN_NORMALISED, step_weight, update_step_weights
from rlvid.records import NoiseSettings

SIGMAS = shifted_sigmas(20, 3.0)


def steps(schedule: str, eta: float) -> tuple[NoiseSettings, torch.Tensor, torch.Tensor]:
    """Settings, sigma and sigma_next of steps 1 to 9."""
    noise = NoiseSettings(schedule=schedule, eta=eta, truncation=0.45, first_sigma=SIGMAS[1])
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    return noise, sigma[1:10], sigma[2:11]


def test_inverse_lambda_gives_the_published_table() -> None:
    """Flash-GRPO's released code lists 1 / lambda for Wan, 20 steps, shift 3 (arXiv:2605.15980)."""
    published = [7.4770, 7.0414, 6.6112, 6.1867, 5.7682, 5.3559, 4.9502, 4.5513, 4.1596, 3.7754]
    noise = NoiseSettings(schedule="flash", eta=1.0, truncation=0.45, first_sigma=SIGMAS[1])
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    computed = step_weight("inverse_lambda", noise, sigma[:10], sigma[1:11])
    # Half a unit of the fourth decimal, with room for the table's own rounding.
    torch.testing.assert_close(
        computed, torch.tensor(published, dtype=torch.float64), rtol=0.0, atol=6e-5
    )


def test_sigmas_fall_from_just_below_one_to_zero() -> None:
    """The first is below 1, where Flow-SDE is singular; timestep 999 of Wan's 1000."""
    assert len(SIGMAS) == 21
    assert int(1000 * SIGMAS[0]) == 999
    assert SIGMAS[0] < 1.0
    assert SIGMAS[-1] == 0.0
    assert all(a > b for a, b in zip(SIGMAS[:-1], SIGMAS[1:], strict=True))


@pytest.mark.parametrize(
    ("kind", "schedule", "flat_value"),
    [("inverse_lambda", "flash", 1.0), ("inverse_lambda", "cps", 1.0), ("longcat", "flow", 1.5)],
)
def test_weight_flattens_the_gradient_scale(kind: str, schedule: str, flat_value: float) -> None:
    """W lambda is alike at all steps: 1 by construction, 1/a + a/2 = 3/2 for LongCat at a = 1."""
    noise, sigma, sigma_next = steps(schedule, 1.0)
    flat = step_weight(kind, noise, sigma, sigma_next) * gradient_scale(noise, sigma, sigma_next)
    torch.testing.assert_close(flat, torch.full_like(flat, flat_value), rtol=1e-10, atol=0.0)


def test_guard_weight_and_ratio_flatten_together() -> None:
    """Guard scales the ratio by std and the loss by 1 / D: together 1 + a^2 / 2 for Flow-SDE."""
    noise, sigma, sigma_next = steps("flow", 0.7)
    std = step_weight("tempflow", noise, sigma, sigma_next)
    flat = step_weight("guard", noise, sigma, sigma_next) * std
    flat = flat * gradient_scale(noise, sigma, sigma_next)
    torch.testing.assert_close(flat, torch.full_like(flat, 1.245), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("kind", ["inverse_lambda", "tempflow"])
def test_normalised_weights_have_mean_one_over_the_update(kind: str) -> None:
    """The learning rate keeps its meaning whichever steps the prompts happened to draw."""
    config = RolloutConfig(shift=3.0, num_denoising_steps=20)
    plans = [make_step_plan(config, recipe_seed=0, prompt_id=str(i), step=0) for i in range(16)]
    weights = torch.cat(update_step_weights(kind, plans))
    assert len(set(weights.tolist())) > 1
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0), rtol=1e-6, atol=0.0)


def test_unknown_weight_is_an_error() -> None:
    """A misspelt kind must not train with weight 1."""
    noise, sigma, sigma_next = steps("flash", 1.0)
    with pytest.raises(ValueError, match="inverse_lambda"):
        step_weight("inverse_lamda", noise, sigma, sigma_next)
    assert set(MEAN_NORMALISED) == {"none", "inverse_lambda", "tempflow", "longcat", "guard"}
