"""What a velocity says about the clean video, the noise and the score: pure conversions.

With latents = (1 - sigma) clean + sigma noise and velocity = noise - clean (`rlvid.flow`), each is
linear in the velocity. Letters: B rows, any shape after them.
"""

from __future__ import annotations

from torch import Tensor

from rlvid.flow.sde import per_row


def predicted_clean(velocity: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
    """Return latents - sigma velocity, the expected clean video [B, ...].

    Args:
        velocity, latents: [B, ...] at `sigma`.
        sigma: [B] in [0, 1].
    """
    return latents - per_row(sigma, latents) * velocity


def predicted_noise(velocity: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
    """Return latents + (1 - sigma) velocity, the expected noise [B, ...]."""
    return latents + per_row(1.0 - sigma.double(), latents) * velocity


def predicted_score(velocity: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
    """Return -(latents + (1 - sigma) velocity) / sigma, the gradient of the log density [B, ...].

    Args:
        sigma: [B] in (0, 1]; the score of a video without noise is not defined.
    """
    return -predicted_noise(velocity, latents, sigma) / per_row(sigma, latents)
