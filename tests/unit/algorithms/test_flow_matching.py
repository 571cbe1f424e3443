"""The loss of supervised fine-tuning."""

from __future__ import annotations

import pytest
import torch

from rlvid.algorithms.flow_matching import add_noise, flow_matching_loss, sample_sigma


def rows(seed: int) -> torch.Tensor:
    return torch.randn(3, 2, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_true_velocity_has_no_loss_and_leads_from_noise_to_clean() -> None:
    """The regression target is the velocity whose Euler step the sampler takes."""
    clean, noise = rows(0), rows(1)
    sigma = torch.tensor([0.2, 0.5, 1.0])
    velocity = noise - clean
    assert torch.equal(flow_matching_loss(velocity, clean, noise), torch.zeros(3))
    latents = add_noise(clean, noise, sigma)
    arrived = latents + velocity * (0.0 - sigma.view(-1, 1, 1, 1, 1))
    torch.testing.assert_close(arrived, clean, atol=1e-6, rtol=0.0)


def test_loss_is_kept_per_row() -> None:
    """Reward-weighted tuning multiplies rows; a mean over the batch could not be undone."""
    clean, noise = rows(0), rows(1)
    velocity = noise - clean
    velocity[1] += 2.0
    torch.testing.assert_close(
        flow_matching_loss(velocity, clean, noise), torch.tensor([0.0, 4.0, 0.0])
    )


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_median_sigma_is_the_shifted_half(density: str, shift: float) -> None:
    """Both densities have median 1/2 before the shift, so shift / (1 + shift) after it."""
    generator = torch.Generator().manual_seed(0)
    sigma = sample_sigma(20000, density=density, shift=shift, generator=generator)  # type: ignore[arg-type]
    assert sigma.min() >= 0.0
    assert sigma.max() < 1.0 + 1e-6
    assert abs(sigma.median().item() - shift / (1.0 + shift)) < 0.01


def test_logit_normal_avoids_the_ends_that_uniform_visits() -> None:
    shares = {}
    for density in ("uniform", "logit_normal"):
        generator = torch.Generator().manual_seed(0)
        sigma = sample_sigma(20000, density=density, shift=1.0, generator=generator)
        shares[density] = (sigma < 0.05).float().mean().item()
    assert shares["uniform"] == pytest.approx(0.05, abs=0.005)
    assert shares["logit_normal"] < 0.005


def test_sigma_is_fixed_by_the_generator() -> None:
    """A resumed run must see the noise levels that the killed one would have seen."""
    one, other = (
        sample_sigma(
            4, density="logit_normal", shift=3.0, generator=torch.Generator().manual_seed(9)
        )
        for _ in range(2)
    )
    assert torch.equal(one, other)
