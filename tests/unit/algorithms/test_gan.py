"""DMD2's GAN term by hand; `tests/numerics/test_dmd_gaussian.py` has the closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from rlvid.algorithms.gan import (
    fake_logit_loss,
    real_logit_loss,
    scaled_gan_gradient,
    student_gan_gradient,
)


def test_undecided_discriminator_pays_log_two_for_each() -> None:
    logit = torch.tensor([0.0, math.log(3.0)])
    assert fake_logit_loss(logit).tolist() == pytest.approx([math.log(2.0), math.log(4.0)])
    assert real_logit_loss(logit).tolist() == pytest.approx([math.log(2.0), math.log(4.0 / 3.0)])


def test_students_gradient_leads_towards_real() -> None:
    """D = x . w at 0 and log 3: -w / 2 and -w / 4 for the two rows; nothing reaches w."""
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    clean = torch.tensor([[2.0, 1.0], [math.log(3.0), 0.0]]).view(2, 2, 1, 1, 1).requires_grad_()
    gradient = student_gan_gradient(clean.flatten(1) @ weight, clean)
    expected = [[-0.5, 1.0], [-0.25, 0.5]]
    torch.testing.assert_close(gradient.flatten(1), torch.tensor(expected))
    assert weight.grad is None
    assert clean.grad is None


def test_scale_is_that_of_a_matching_loss_that_is_divided_by_the_elements() -> None:
    gradient = torch.ones(2, 4, 1, 1, 2)
    assert torch.equal(scaled_gan_gradient(gradient, 0.25) / 8, torch.full_like(gradient, 0.25))
