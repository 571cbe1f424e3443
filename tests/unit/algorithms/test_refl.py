"""Reward back-propagation on a linear velocity, whose gradient is known by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.refl import (
    GradientPath,
    draw_exit_step,
    refl_loss,
    reward_loss,
    sample_with_gradient,
)
from rlvid.flow.sampler import sample_ode

SIGMAS = (1.0, 0.7, 0.4, 0.0)


def start(num_rows: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_rows, 2, 1, 2, 2, generator=generator, dtype=torch.float64)


class Linear:
    """v = a x + b sigma, with the scalars a and b to learn."""

    def __init__(self, a: float, b: float) -> None:
        self.a = torch.tensor(a, dtype=torch.float64, requires_grad=True)
        self.b = torch.tensor(b, dtype=torch.float64, requires_grad=True)
        self.graphs: list[bool] = []

    def __call__(self, latents: Tensor, sigma: Tensor) -> Tensor:
        velocity: Tensor = self.a * latents + self.b * sigma.view(-1, 1, 1, 1, 1)
        self.graphs.append(velocity.requires_grad)
        return velocity


def decode(latents: Tensor) -> Tensor:
    return latents.square()


def reward(videos: Tensor) -> Tensor:
    return videos.sum(dim=(1, 2, 3, 4)).sin()


def loss_value(a: float, b: float) -> float:
    with torch.no_grad():
        clean = sample_with_gradient(Linear(a, b), start(), SIGMAS, GradientPath())
        return float(-reward(decode(clean)).sum())


def test_gradient_equals_finite_differences() -> None:
    """Through all three steps, decoder and critic; central differences in float64."""
    policy = Linear(0.3, -0.2)
    path = GradientPath(num_gradient_steps=3)
    terms = refl_loss(policy, start(), SIGMAS, decode=decode, reward=reward, path=path)
    gradients = torch.autograd.grad(terms.loss.sum(), (policy.a, policy.b))
    h = 1e-5
    numeric = (
        (loss_value(0.3 + h, -0.2) - loss_value(0.3 - h, -0.2)) / (2.0 * h),
        (loss_value(0.3, -0.2 + h) - loss_value(0.3, -0.2 - h)) / (2.0 * h),
    )
    # The error of a central difference is O(h^2), 1e-10 here times the third derivative.
    assert [float(value) for value in gradients] == pytest.approx(numeric, rel=1e-6)


def test_truncated_gradient_is_that_of_the_last_step_alone() -> None:
    """One step from sigma 0.4: clean = x - 0.4 (a x + 0.4 b), so d clean / da = -0.4 x.

    The state x there is that equation solved for it.
    """
    policy = Linear(0.3, -0.2)
    clean = sample_with_gradient(policy, start(), SIGMAS, GradientPath())
    gradient_a, gradient_b = torch.autograd.grad(clean.sum(), (policy.a, policy.b))
    state = (clean.detach() + 0.16 * -0.2) / (1.0 - 0.4 * 0.3)
    assert policy.graphs == [False, False, True]
    assert float(gradient_a) == pytest.approx(float(-0.4 * state.sum()), rel=1e-12)
    assert float(gradient_b) == pytest.approx(-0.16 * clean.numel(), rel=1e-12)


def test_stopped_inputs_leave_the_straight_sum_of_velocities() -> None:
    """d clean / db of all steps: sum of d_sigma * sigma, without the products (1 + d_sigma a)."""
    policy = Linear(0.3, -0.2)
    path = GradientPath(num_gradient_steps=3, crosses_inputs=False)
    clean = sample_with_gradient(policy, start(), SIGMAS, path)
    (gradient,) = torch.autograd.grad(clean.sum(), policy.b)
    steps = zip(SIGMAS[:-1], SIGMAS[1:], strict=True)
    expected = sum((later - sigma) * sigma for sigma, later in steps) * clean.numel()
    assert float(gradient) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "path",
    [GradientPath(), GradientPath(num_gradient_steps=3), GradientPath(crosses_inputs=False)],
)
def test_the_path_changes_no_bit_of_the_video(path: GradientPath) -> None:
    """The critic must judge what the sampler makes."""
    latents = start().float()
    policy = Linear(0.3, -0.2)
    expected = sample_ode(policy, latents, SIGMAS)
    assert torch.equal(sample_with_gradient(policy, latents, SIGMAS, path), expected)


def test_early_exit_jumps_to_the_expected_clean_video() -> None:
    """ReFL at step 1: x_1 = x + (0.7 - 1) v(x, 1), then x_1 - 0.7 v(x_1, 0.7)."""
    policy = Linear(0.3, -0.2)
    clean = sample_with_gradient(policy, start(), SIGMAS, GradientPath(exit_step=1))
    with torch.no_grad():
        state = start() - 0.3 * (0.3 * start() - 0.2)
        expected = state - 0.7 * (0.3 * state - 0.2 * 0.7)
    torch.testing.assert_close(clean.detach(), expected, rtol=1e-12, atol=1e-14)
    assert policy.graphs == [False, True]


def test_a_row_past_the_target_has_no_gradient() -> None:
    """relu(2 - r) of rewards 3, 2, 0.5: 0, 0, 1.5; without a target the loss is -r."""
    rewards = torch.tensor([3.0, 2.0, 0.5], requires_grad=True)
    loss = reward_loss(rewards, target=2.0)
    assert loss.tolist() == [0.0, 0.0, 1.5]
    (gradient,) = torch.autograd.grad(loss.sum(), rewards)
    assert gradient.tolist() == [0.0, 0.0, -1.0]
    assert reward_loss(rewards).tolist() == [-3.0, -2.0, -0.5]


def test_a_decoder_without_gradient_is_an_error() -> None:
    """It would train on nothing, silently."""
    with pytest.raises(ValueError, match="no_grad"):
        refl_loss(
            Linear(0.3, -0.2),
            start(),
            SIGMAS,
            decode=torch.no_grad()(decode),
            reward=reward,
            path=GradientPath(),
        )


@pytest.mark.parametrize(
    ("path", "match"),
    [
        (GradientPath(exit_step=3), "exit_step"),
        (GradientPath(num_gradient_steps=0), "num_gradient_steps"),
        (GradientPath(num_gradient_steps=3, exit_step=1), "num_gradient_steps"),
    ],
)
def test_steps_that_are_not_there_are_an_error(path: GradientPath, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sample_with_gradient(Linear(0.3, -0.2), start(), SIGMAS, path)


def test_draws_stay_in_their_ranges() -> None:
    """ReFL exits in steps 30 to 39 of 40; AlignProp keeps 1 to K steps."""
    generator = torch.Generator().manual_seed(0)
    exits = {draw_exit_step(40, generator=generator) for _ in range(400)}
    assert exits == set(range(30, 40))
