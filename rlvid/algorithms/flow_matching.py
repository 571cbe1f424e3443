"""Flow matching on clips: the loss of supervised fine-tuning, as pure functions.

Letters: B rows, C F H W latents. The caller drops prompts and calls the model.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlvid.flow.sigmas import Shift, shifted


def sample_sigma(
    num_rows: int,
    *,
    density: Literal["uniform", "logit_normal"],
    shift: Shift,
    generator: torch.Generator,
    device: torch.device | None = None,
) -> Tensor:
    """Draw the noise levels of a batch.

    uniform:       u ~ U(0, 1)
    logit_normal:  u = 1 / (1 + exp(-n)),  n ~ N(0, 1)

    then  sigma = shift * u / (1 + (shift - 1) * u), the sampler's own shift (Stable Diffusion 3,
    arXiv:2403.03206, section 3.1), or its table, so that training sees the levels sampling visits.

    Args:
        generator: on the CPU; the draw is then the same on every device.

    Returns:
        sigma [B] float32 in (0, 1).
    """
    if density == "uniform":
        u = torch.rand(num_rows, generator=generator)
    else:
        u = torch.randn(num_rows, generator=generator).sigmoid()
    return shifted(u, shift).to(device)


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return latents = (1 - sigma) * clean + sigma * noise.

    Args:
        clean, noise: [B, C, F, H, W] float32.
        sigma: [B] in [0, 1].
    """
    level = sigma.view(-1, *[1] * (clean.dim() - 1))
    return (1.0 - level) * clean + level * noise


def flow_matching_loss(velocity: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    """Return the loss of each row, mean over elements, of the rectified-flow regression

        E || v_theta(x_sigma, sigma, prompt) - (noise - clean) ||^2

    (Flow Matching, arXiv:2210.02747, on the straight paths of Rectified Flow, arXiv:2209.03003).
    The rows are not averaged: the caller may weight them by reward first.

    Args:
        velocity: [B, C, F, H, W] of the model at `add_noise(clean, noise, sigma)`.
        clean, noise: [B, C, F, H, W] float32.

    Returns:
        [B] float32.
    """
    return (velocity.float() - (noise - clean)).square().flatten(1).mean(dim=1)
