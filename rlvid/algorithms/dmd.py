r"""Distribution matching: a student's gradient from two scores (DMD2, arXiv:2405.14867).

The gradient of KL(student || teacher) with respect to a generated video, at every noise level, is
the score of what the student makes minus the score of the teacher's data. With scores as expected
clean videos (DMD, arXiv:2311.18828, eq. 7 and its normalisation, eq. 8, as numbered in the released
code of Self-Forcing, arXiv:2506.08009):

    grad  =  (x0_fake - x0_real) / mean |clean - x0_real|

and x0_fake - x0_real = sigma (v_real - v_fake) = sigma^2 / (1 - sigma) (score_fake - score_real).
The fake score is a second model that is trained to denoise the student's videos, five updates for
each of the student's (DMD2's two time scales); guidance is the real score's alone. DMD2's GAN term
is in `rlvid.algorithms.gan`.

Letters: B rows, C F H W latents.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlvid.flow.predictions import predicted_clean
from rlvid.flow.sde import per_row
from rlvid.flow.sigmas import Shift, shifted

FAKE_UPDATES_PER_STUDENT = 5
"""Updates of the fake score for each one of the student (DMD2; Self-Forcing)."""
SIGMA_RANGE = (0.02, 0.98)
"""Noise levels at which the scores are compared (DMD2 and Self-Forcing, released code)."""
SMALLEST_SCALE = 1e-6
"""Floor of the normaliser. The released code sets the resulting NaN to 0 instead."""


def draw_score_sigma(
    num_rows: int,
    *,
    generator: torch.Generator,
    shift: Shift = 1.0,
    sigma_range: tuple[float, float] = SIGMA_RANGE,
    device: torch.device | None = None,
) -> Tensor:
    """Draw the noise levels at which the scores are compared, [B] float32 in `sigma_range`.

    u ~ U(0, 1), sigma = shift u / (1 + (shift - 1) u), then clamped to the range: Self-Forcing's
    order. At shift 1 DMD2 draws within the range instead; the clamp moves 4 % of the rows.

    Args:
        generator: on the CPU; the draw is then the same on every device.
    """
    low, high = sigma_range
    if not 0.0 < low < high < 1.0:
        raise ValueError(f"dmd: sigma_range: expected 0 < low < high < 1, got {sigma_range}.")
    u = torch.rand(num_rows, generator=generator)
    return shifted(u, shift).clamp(low, high).to(device)


@torch.no_grad()
def dmd_gradient(
    clean: Tensor,
    latents: Tensor,
    sigma: Tensor,
    *,
    real_velocity: Tensor,
    fake_velocity: Tensor,
    normalise: bool = True,
) -> Tensor:
    """Return the gradient with respect to the student's video, [B, C, F, H, W], without gradient.

    Args:
        clean: [B, C, F, H, W] made by the student.
        latents: add_noise(clean, fresh noise, sigma).
        sigma: [B] in (0, 1).
        real_velocity: of the frozen teacher at `latents`, guided.
        fake_velocity: of the fake score at `latents`, unguided.
        normalise: divide each row by the teacher's mean error, which makes noise levels weigh
            alike; off, the difference of the expected clean videos.
    """
    difference = per_row(sigma, clean) * (real_velocity - fake_velocity)
    if not normalise:
        return difference
    error = clean - predicted_clean(real_velocity, latents, sigma)
    scale = error.abs().flatten(1).mean(dim=1, dtype=torch.float64).clamp(min=SMALLEST_SCALE)
    return difference / per_row(scale, difference)


def dmd_loss(clean: Tensor, gradient: Tensor) -> Tensor:
    """Return a loss [B] whose gradient with respect to `clean` is `gradient`, bit for bit.

    Its value is 0.5 ||gradient||^2, like that of the published
    0.5 ||clean - stop(clean - gradient)||^2, whose gradient is the same but for the rounding of
    clean - gradient. A *sum* over elements; divide by their number in the open for the published
    mean.

    Args:
        clean: [B, C, F, H, W] made by the student, with gradient.
        gradient: from `dmd_gradient`.
    """
    fixed = gradient.detach()
    moved = (clean - clean.detach()) * fixed
    return (moved + 0.5 * fixed.square()).flatten(1).sum(dim=1)


def fake_score_loss(
    fake_velocity: Tensor,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    *,
    target: Literal["velocity", "noise"] = "velocity",
) -> Tensor:
    """Return the denoising loss of the fake score, [B], mean over elements.

    Args:
        fake_velocity: [B, C, F, H, W] with gradient, at add_noise(clean, noise, sigma), unguided.
        clean: made by the student; detached here, so the student is not trained by it.
        noise: fresh, another than the student's.
        sigma: [B], within the levels at which the scores are compared (Self-Forcing's critic).
        target: velocity is flow matching; noise is DMD2's, (1 - sigma)^2 times it.
    """
    error = fake_velocity - (noise - clean.detach())
    if target == "noise":
        error = per_row(1.0 - sigma, error) * error
    return error.square().flatten(1).mean(dim=1)


def updates_student(step: int, *, fake_updates_per_student: int = FAKE_UPDATES_PER_STUDENT) -> bool:
    """Return whether step `step`, from 0, updates the student before the fake score.

    Every step updates the fake score, and every fifth one the student as well, the first included:
    the order of the released code.
    """
    if fake_updates_per_student < 1:
        raise ValueError(
            f"dmd: fake_updates_per_student: expected at least 1, got {fake_updates_per_student}."
        )
    return step % fake_updates_per_student == 0
