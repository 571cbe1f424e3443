"""Advantage-weighted matching by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.awm import MatchingWeight, awm_loss, matching_log_prob

NUM_ELEMENTS = 8


def noise_of(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, 1, 2, 2, generator=generator, dtype=torch.float64)


SIGMA = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ("uniform", -16.0),
        ("sigma", -8.0),
        ("sigma_squared", -4.0),
        ("huber", -0.5 * (4.0 - 1e-5)),
        ("generalised_huber", -0.5 * 4.0 * (2.0 - 1e-10**0.25)),
    ],
)
def test_log_prob_by_hand(weight: MatchingWeight, expected: float) -> None:
    """Error 4 in every element, e = 16, sigma = 1/2; huber sqrt(16), generalised 16^0.25 / 0.25."""
    clean, noise = noise_of(0), noise_of(1)
    sigma = torch.full((3,), 0.5, dtype=torch.float64)
    log_prob = matching_log_prob(noise - clean + 4.0, clean, noise, sigma, weight=weight)
    assert log_prob.tolist() == pytest.approx([expected] * 3, rel=1e-9)


def test_perfect_match_has_a_finite_gradient() -> None:
    """The gradient of a bare root is infinite at 0, and times 0 it is NaN."""
    clean, noise = noise_of(0), noise_of(1)
    velocity = (noise - clean).requires_grad_()
    log_prob = matching_log_prob(velocity, clean, noise, SIGMA, weight="generalised_huber")
    (gradient,) = torch.autograd.grad(log_prob.sum(), velocity)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_gradient_on_policy_is_advantage_times_flow_matching() -> None:
    """r = 1 exactly, so d loss = -A d log p = A w 2 (v - u) / num_elements, here with w = sigma."""
    clean, noise = noise_of(0), noise_of(1)
    velocity = noise_of(2).requires_grad_()
    advantage = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    log_prob = matching_log_prob(velocity, clean, noise, SIGMA, weight="sigma")
    loss, clipped = awm_loss(log_prob, log_prob.detach(), advantage, clip_range=0.1)
    assert torch.equal(loss, -advantage)
    assert not clipped.any()
    (gradient,) = torch.autograd.grad(loss.sum(), velocity)
    weight = (advantage * SIGMA).view(-1, 1, 1, 1, 1)
    expected = weight * 2.0 * (velocity.detach() - (noise - clean)) / NUM_ELEMENTS
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)
    assert torch.equal(gradient[2], torch.zeros_like(gradient[2]))


def test_ratio_is_clipped_as_in_ppo() -> None:
    """Ratios 1.5, 0.5, 1.5, range 0.2, advantages 1, -1, -1: -1.2 and 0.8 clipped, 1.5 not."""
    log_prob = torch.tensor([1.5, 0.5, 1.5], dtype=torch.float64).log().requires_grad_()
    advantage = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    loss, clipped = awm_loss(log_prob, torch.zeros(3), advantage, clip_range=0.2)
    assert loss.tolist() == pytest.approx([-1.2, 0.8, 1.5])
    assert clipped.tolist() == [True, True, False]
    (gradient,) = torch.autograd.grad(loss.sum(), log_prob)
    assert gradient.tolist() == pytest.approx([0.0, 0.0, 1.5])


def test_power_outside_its_range_is_an_error() -> None:
    with pytest.raises(ValueError, match="power"):
        matching_log_prob(
            noise_of(0), noise_of(1), noise_of(2), SIGMA, weight="generalised_huber", power=0.0
        )
