"""DiffusionNFT by hand: branches, fixed points, gradients, and the old policy's schedule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.nft import (
    implicit_velocities,
    nft_loss,
    optimality_probability,
)

SHAPE = (2, 1, 2, 2)
NUM_ELEMENTS = 8


def noise_of(seed: int, num_rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, *SHAPE, generator=generator, dtype=torch.float64)


def halves(num_rows: int = 3) -> Tensor:
    return torch.full((num_rows,), 0.5, dtype=torch.float64)


SIGMA = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)


def test_advantage_becomes_a_probability() -> None:
    """A_max 5: 0 is 1/2, +-5 and beyond 1 and 0, 2.5 three quarters."""
    advantage = torch.tensor([0.0, 5.0, -5.0, 9.0, 2.5])
    probability = optimality_probability(advantage, advantage_clip=5.0)
    assert torch.equal(probability, torch.tensor([0.5, 1.0, 0.0, 1.0, 0.75]))


def test_branches_are_those_of_the_paper() -> None:
    """v+ = (1 - beta) v_old + beta v and v- = (1 + beta) v_old - beta v (eq. 5), beta 0.1."""
    velocity, old = noise_of(0), noise_of(1)
    positive, negative = implicit_velocities(velocity, old, beta=0.1)
    torch.testing.assert_close(positive, 0.9 * old + 0.1 * velocity, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(negative, 1.1 * old - 0.1 * velocity, rtol=1e-12, atol=1e-15)
    assert torch.equal(implicit_velocities(old, old, beta=0.1)[0], old)


def test_loss_of_one_element_by_hand() -> None:
    """clean 1, noise 3: u = 2. v_old = 1, v = 2, beta = 1: v+ = 2, v- = 0, errors 0 and 4.

    r = 0.75, A_max = 5: 5 (0.75 * 0 + 0.25 * 4) = 5. Adaptive, sigma = 0.5: the error of v- in the
    clean video is 1, its square over its mean size 1: 5 * 0.25 * 1.
    """
    one = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    for weighting, expected in (("none", 5.0), ("adaptive", 1.25)):
        terms = nft_loss(
            2.0 * one,
            one,
            one,
            3.0 * one,
            torch.tensor([0.5], dtype=torch.float64),
            optimality=torch.tensor([0.75], dtype=torch.float64),
            beta=1.0,
            advantage_clip=5.0,
            weighting=weighting,  # type: ignore[arg-type]
        )
        assert terms.loss.tolist() == [expected]
        assert terms.old_distance.tolist() == [1.0]


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_zero_advantage_is_plain_matching_to_the_old_policy(beta: float) -> None:
    """At r = 1/2 the branches sum to |v_old - u|^2 + beta^2 |v - v_old|^2: the target cancels."""
    velocity = noise_of(0).requires_grad_()
    old, clean, noise = noise_of(1), noise_of(2), noise_of(3)
    terms = nft_loss(
        velocity,
        old,
        clean,
        noise,
        SIGMA,
        optimality=halves(),
        beta=beta,
        advantage_clip=1.0,
        weighting="none",
    )
    (gradient,) = torch.autograd.grad(terms.loss.sum(), velocity)
    expected = beta * 2.0 * (velocity.detach() - old) / NUM_ELEMENTS
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("weighting", ["adaptive", "none"])
def test_old_policy_is_a_fixed_point_of_zero_advantage(weighting: str) -> None:
    """Nothing to learn may mean no gradient at all, not a small one: Adam would magnify it."""
    old = noise_of(1)
    velocity = old.clone().requires_grad_()
    terms = nft_loss(
        velocity,
        old,
        noise_of(2),
        noise_of(3),
        SIGMA,
        optimality=halves(),
        beta=0.1,
        advantage_clip=5.0,
        weighting=weighting,  # type: ignore[arg-type]
    )
    (gradient,) = torch.autograd.grad(terms.loss.sum(), velocity)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert torch.equal(terms.old_distance, torch.zeros(3, dtype=torch.float64))


def test_old_policy_is_not_trained() -> None:
    """It is held as an average; with LoRA it may share the graph of the policy."""
    velocity, old = noise_of(0).requires_grad_(), noise_of(1).requires_grad_()
    terms = nft_loss(
        velocity,
        old,
        noise_of(2),
        noise_of(3),
        SIGMA,
        optimality=torch.tensor([0.0, 0.5, 1.0]),
        beta=1.0,
        advantage_clip=5.0,
    )
    _, theirs = torch.autograd.grad(terms.loss.sum(), (velocity, old), allow_unused=True)
    assert theirs is None


@pytest.mark.parametrize(("beta", "advantage_clip"), [(0.1, 5.0), (1.0, 5.0), (1.0, 2.0)])
def test_gradient_on_policy_is_advantage_times_flow_matching(
    beta: float, advantage_clip: float
) -> None:
    """A_max / beta makes the first step independent of both: A * 2 (v - u) / num_elements."""
    old, clean, noise = noise_of(1), noise_of(2), noise_of(3)
    velocity = old.clone().requires_grad_()
    advantage = torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64)
    terms = nft_loss(
        velocity,
        old,
        clean,
        noise,
        SIGMA,
        optimality=optimality_probability(advantage, advantage_clip=advantage_clip),
        beta=beta,
        advantage_clip=advantage_clip,
        weighting="none",
    )
    (gradient,) = torch.autograd.grad(terms.loss.sum(), velocity)
    matching = 2.0 * (old - (noise - clean)) / NUM_ELEMENTS
    expected = advantage.view(-1, 1, 1, 1, 1) * matching
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_adaptive_weight_carries_no_gradient() -> None:
    """r = beta = 1: loss e^2 / m, e = sigma (v - u), m = mean |e|; gradient 2 sigma e / (n m)."""
    velocity = noise_of(0).requires_grad_()
    clean, noise = noise_of(2), noise_of(3)
    terms = nft_loss(
        velocity,
        noise_of(1),
        clean,
        noise,
        SIGMA,
        optimality=torch.ones(3, dtype=torch.float64),
        beta=1.0,
        advantage_clip=1.0,
    )
    (gradient,) = torch.autograd.grad(terms.loss.sum(), velocity)
    sigma = SIGMA.view(-1, 1, 1, 1, 1)
    error = sigma * (velocity.detach() - (noise - clean))
    scale = error.abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    expected = 2.0 * sigma * error / scale / NUM_ELEMENTS
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_minimum_is_the_guided_velocity_of_theorem_3_2() -> None:
    """Two rollouts behind one state, targets 1 and 3, r = 0.9 and 0.3, beta = 0.5.

    v_old = E[u] = 2, E[r] = 0.6, E[r u] = 0.9, so Delta = 0.9 - 0.6 * 2 = -0.3 and the minimum is
    2 + (2 / 0.5) (-0.3) = 0.8. It is quadratic: one Newton step from anywhere lands there.
    """
    target = torch.tensor([1.0, 3.0], dtype=torch.float64).view(2, 1, 1, 1, 1)

    def loss(value: Tensor) -> Tensor:
        terms = nft_loss(
            value.expand(2, 1, 1, 1, 1),
            torch.full_like(target, 2.0),
            torch.zeros_like(target),
            target,
            torch.ones(2, dtype=torch.float64),
            optimality=torch.tensor([0.9, 0.3], dtype=torch.float64),
            beta=0.5,
            advantage_clip=1.0,
            weighting="none",
        )
        return terms.loss.mean()

    start = torch.tensor(5.0, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(loss, start)
    curvature = torch.autograd.functional.hessian(loss, start)
    assert float(start - slope / curvature) == pytest.approx(0.8, rel=1e-12)


def test_raw_advantages_are_refused() -> None:
    """An advantage taken for a probability would give one branch a negative weight."""
    with pytest.raises(ValueError, match="optimality_probability"):
        nft_loss(
            noise_of(0),
            noise_of(1),
            noise_of(2),
            noise_of(3),
            SIGMA,
            optimality=torch.tensor([1.0, -0.5, 2.0]),
            beta=1.0,
            advantage_clip=5.0,
        )
