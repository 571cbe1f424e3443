"""What rlvid asks of a video model: four methods and its trainable transformer.

Conventions (rlvid.flow): sigma in [0, 1], 1 is pure noise; velocity = noise - clean; latents are
normalised, float32 outside the model. Letters: B batch, C F H W latent, T pixel frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rlvid.condition import Condition
from rlvid.flow.prompt_condition import TakesMedia


@runtime_checkable
class VideoModel(Protocol):
    """A text-to-video flow-matching model."""

    transformer: nn.Module
    """The policy. The learner replaces it by its wrapped self; `velocity` always calls it."""
    device: torch.device

    def encode_prompts(self, texts: Sequence[str]) -> Condition:
        """Return what the frozen text encoders make of B texts; "" is the empty prompt."""
        ...

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the velocity [B, C, F, H, W] float32 at `sigma` [B]; differentiable."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, F, H, W] -> videos [B, T, 3, height, width] float32 in [0, 1]."""
        ...

    def encode(self, videos: Tensor) -> Tensor:
        """[B, T, 3, height, width] in [0, 1] -> latents [B, C, F, H, W] float32, the mode."""
        ...

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (C, F, H, W) for a clip of that size; ValueError when it does not divide."""
        ...

    def save(self, folder: str) -> None:
        """Write the whole pipeline in diffusers' folder layout."""
        ...


@runtime_checkable
class MediaModel(VideoModel, TakesMedia, Protocol):
    """A video model that is told pictures or clips beside a text, or may be.

    `velocity` is given the condition of the text and that of the media as one:
    `encode_prompts(texts) | encode_media(media, num_frames)`.
    """
