"""Classifier-free guidance, the same in rollout, training and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rlvid.condition import Condition
    from rlvid.models.base import VideoModel


def guided_velocity(
    model: VideoModel,
    latents: Tensor,
    sigma: Tensor,
    condition: Condition,
    negative: Condition | None,
    guidance_scale: float,
) -> Tensor:
    """Return negative + guidance_scale (conditional - negative), [B, C, F, H, W] float32.

    One forward of 2B rows, the conditional ones first; at scale 1 the conditional half alone.

    Args:
        latents: [B, C, F, H, W].
        sigma: [B].
        condition: of B rows, or of one for a whole group.
        negative: likewise, of the empty prompt; may be None at scale 1.
    """
    batch = latents.shape[0]
    positive = condition.expand(batch)
    if guidance_scale == 1.0:
        return model.velocity(latents, sigma, positive)
    if negative is None:
        raise ValueError(
            "guided_velocity: negative is missing: expected a condition at "
            f"guidance_scale {guidance_scale}, got None. Encode the empty prompt."
        )
    both = model.velocity(
        torch.cat([latents, latents]),
        torch.cat([sigma, sigma]),
        positive.joined(negative.expand(batch)),
    )
    conditional, unconditional = both.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)
