"""Distribution matching by hand; `tests/numerics/test_dmd_gaussian.py` has the closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.dmd import (
    dmd_gradient,
    dmd_loss,
    draw_score_sigma,
    fake_score_loss,
    updates_student,
)
from rlvid.algorithms.flow_matching import add_noise


def noise_of(seed: int) -> Tensor:
    return torch.randn(3, 2, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def test_gradient_of_one_row_by_hand() -> None:
    """clean (1, 3), sigma 1/2, latents (2, 4), v_real (4, 2), v_fake (2, 6).

    x0_real = (0, 3), x0_fake = (1, 1), so the difference is (1, -2); the teacher's error is
    |(1, 0)|, of mean 1/2, so the gradient is (2, -4).
    """

    def row(*values: float) -> Tensor:
        return torch.tensor(values).view(1, 2, 1, 1, 1)

    clean, latents, sigma = row(1.0, 3.0), row(2.0, 4.0), torch.tensor([0.5])
    real, fake = row(4.0, 2.0), row(2.0, 6.0)
    gradient = dmd_gradient(clean, latents, sigma, real_velocity=real, fake_velocity=fake)
    assert gradient.flatten().tolist() == [2.0, -4.0]
    plain = dmd_gradient(
        clean, latents, sigma, real_velocity=real, fake_velocity=fake, normalise=False
    )
    assert plain.flatten().tolist() == [1.0, -2.0]


def test_surrogate_has_the_gradient_bit_for_bit() -> None:
    """In float32, where clean - (clean - gradient) would lose most bits of a small gradient."""
    clean = (100.0 * noise_of(0)).requires_grad_()
    gradient = 1e-4 * noise_of(1)
    loss = dmd_loss(clean, gradient)
    (actual,) = torch.autograd.grad(loss.sum(), clean)
    assert torch.equal(actual, gradient)
    expected = 0.5 * gradient.square().flatten(1).sum(dim=1)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=0.0)


def test_equal_scores_leave_the_student_alone() -> None:
    """The student's distribution is the teacher's: any gradient would lead away."""
    clean, velocity = noise_of(0), noise_of(1)
    sigma = torch.tensor([0.1, 0.5, 0.9])
    latents = add_noise(clean, noise_of(2), sigma)
    gradient = dmd_gradient(clean, latents, sigma, real_velocity=velocity, fake_velocity=velocity)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_scores_carry_no_gradient() -> None:
    """Neither the teacher nor the fake score is trained by the student's loss."""
    clean = noise_of(0).requires_grad_()
    fake = noise_of(1).requires_grad_()
    gradient = dmd_gradient(
        clean, noise_of(2), torch.full((3,), 0.5), real_velocity=noise_of(3), fake_velocity=fake
    )
    assert not gradient.requires_grad


@pytest.mark.parametrize(("target", "factor"), [("velocity", 1.0), ("noise", 0.0625)])
def test_fake_score_is_trained_on_the_students_videos_alone(target: str, factor: float) -> None:
    """Error 2 everywhere: 4, times (1 - 0.75)^2 for an error of the noise; none for the student."""
    clean = noise_of(0).requires_grad_()
    noise = noise_of(1)
    velocity = (noise - clean.detach() + 2.0).requires_grad_()
    loss = fake_score_loss(
        velocity,
        clean,
        noise,
        torch.full((3,), 0.75),
        target=target,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(loss, torch.full((3,), 4.0 * factor), rtol=1e-6, atol=0.0)
    student, fake = torch.autograd.grad(loss.sum(), (clean, velocity), allow_unused=True)
    assert student is None
    assert fake.abs().min() > 0.0


def test_student_moves_once_in_five_updates_of_the_fake_score() -> None:
    """The first step included; at 1 the two are updated alike."""
    assert [step for step in range(12) if updates_student(step)] == [0, 5, 10]
    assert all(updates_student(step, fake_updates_per_student=1) for step in range(3))
    with pytest.raises(ValueError, match="fake_updates_per_student"):
        updates_student(0, fake_updates_per_student=0)


def test_levels_stay_within_the_range_and_follow_the_shift() -> None:
    """2 % to 98 %; the median of a shifted draw is shift / (1 + shift)."""
    generator = torch.Generator().manual_seed(0)
    sigma = draw_score_sigma(20000, generator=generator, shift=5.0)
    assert float(sigma.min()) == pytest.approx(0.02)
    assert float(sigma.max()) == pytest.approx(0.98)
    assert float(sigma.median()) == pytest.approx(5.0 / 6.0, abs=0.01)
    with pytest.raises(ValueError, match="sigma_range"):
        draw_score_sigma(1, generator=generator, sigma_range=(0.0, 1.0))
