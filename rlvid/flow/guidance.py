"""Classifier-free guidance, the same in rollout, training and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rlvid.models.base import VideoModel


def guided_velocity(
    model: VideoModel,
    latents: Tensor,
    sigma: Tensor,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor | None,
    guidance_scale: float,
) -> Tensor:
    """Return negative + guidance_scale (conditional - negative), [B, C, F, H, W] float32.

    One forward of 2B rows, the conditional ones first; at scale 1 the conditional half alone.

    Args:
        latents: [B, C, F, H, W].
        sigma: [B].
        prompt_embeds: [B, L, D], or [1, L, D] for a whole group.
        negative_prompt_embeds: likewise; may be None at scale 1.
    """
    batch = latents.shape[0]
    positive = prompt_embeds.expand(batch, -1, -1)
    if guidance_scale == 1.0:
        return model.velocity(latents, sigma, positive)
    if negative_prompt_embeds is None:
        raise ValueError(
            "guided_velocity: negative_prompt_embeds is missing: expected a tensor at "
            f"guidance_scale {guidance_scale}, got None. Encode the empty prompt."
        )
    embeds = torch.cat([positive, negative_prompt_embeds.expand(batch, -1, -1)])
    both = model.velocity(torch.cat([latents, latents]), torch.cat([sigma, sigma]), embeds)
    conditional, negative = both.chunk(2)
    return negative + guidance_scale * (conditional - negative)
