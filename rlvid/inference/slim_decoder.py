"""A slim decoder: a small network that stands in for the decoder of a model's VAE.

After TAEHV and TAEW2.1 (Ollin Boer Bohan, github.com/madebyollin/taehv): 2D convolutions on every
latent frame, and blocks that also see the frame before. It is causal, so clips may come in parts.
Unlike theirs, blocks normalise their input, as those of most VAEs do, without which a minute of
training does not go far; and time unfolds in the last convolution, with the pixels, and not between
the levels: at the finest level it computes one frame of features for each latent frame, not one for
each frame of the clip.

Letters: B clips, C F h w latents, T frames, H W pixels, N features.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

PIXELS_AT_ONCE = 2**22
"""Of the frames that are computed together; longer or larger clips go stretch by stretch."""
_SOFT_RANGE = 3.0
"""Latents are bent to within it, as in TAEHV: of unit scale, few are beyond."""

Memory = tuple[Tensor, ...]
"""[B, 1, N, h, w] what each block saw in the last latent frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimShape:
    """What a slim decoder turns into what, and how large it is."""

    channels: int
    """C of the latents."""
    temporal: int
    """Frames that a latent frame behind the first stands for; the first stands for one."""
    spatial: int
    """Pixels that a latent position is wide and high, a power of two."""
    width: int = 32
    """Features at the finest level, half the resolution of the clip; coarser levels have twice
    as many."""
    num_blocks: int = 1
    """Of each level."""

    def __post_init__(self) -> None:
        if self.spatial < 2 or self.spatial & (self.spatial - 1):
            raise ValueError(
                f"slim decoder: spatial: expected a power of two from 2 on, got {self.spatial}: "
                "each level doubles the resolution. Decode with the VAE"
            )
        for name in ("channels", "temporal", "width", "num_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"slim decoder: {name}: expected at least 1, got {getattr(self, name)}"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of each level, the coarsest first."""
        return (*[2 * self.width] * (self.spatial.bit_length() - 2), self.width)


def shape_between(
    latents: Tensor, videos: Tensor, *, width: int = 32, num_blocks: int = 1
) -> SlimShape:
    """Return the shape of a decoder from such latents to such videos.

    Args:
        latents: [B, C, F, h, w].
        videos: [B, T, 3, H, W], what the VAE makes of them.

    Raises:
        ValueError: their sizes are in no such relation.
    """
    _, channels, frames, height, _ = latents.shape
    spatial = videos.shape[3] // height
    temporal = (videos.shape[1] - 1) // (frames - 1) if frames > 1 else 1
    shape = SlimShape(
        channels=channels, temporal=temporal, spatial=spatial, width=width, num_blocks=num_blocks
    )
    expected = _video_size(latents, shape)
    if videos.shape[1:] != expected:
        raise ValueError(
            f"slim decoder: latents {list(latents.shape)} decode to {list(videos.shape)}: expected "
            f"{list(expected)} of each clip, one ratio for height and width and one frame for the "
            "first latent frame. Decode with the VAE"
        )
    return shape


class PositionNorm(nn.Module):
    """Scales the features of a position to a mean square of 1, then each by a weight; as Wan's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, N, h, w] -> [B, N, h, w]."""
        scale = hidden.square().mean(dim=1, keepdim=True).add(1e-6).rsqrt()
        return hidden * scale * self.weight


class MemoryBlock(nn.Module):
    """Adds to each frame what two convolutions make of it and of the one before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = PositionNorm(width)
        self.inner = nn.Conv2d(2 * width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.outer.weight)  # a new block changes nothing, so deep ones train at once

    def forward(self, frames: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frames and what the next stretch needs for `before`.

        Args:
            frames: [B, F, N, h, w].
            before: [B, 1, N, h, w], of the frame before the first; zeros begin a clip.
        """
        seen = functional.silu(self.norm(frames.flatten(0, 1))).unflatten(0, frames.shape[:2])
        past = torch.cat([before, seen[:, :-1]], dim=1)
        hidden = functional.silu(self.inner(torch.cat([seen, past], dim=2).flatten(0, 1)))
        return frames + self.outer(hidden).unflatten(0, frames.shape[:2]), seen[:, -1:]


class SlimDecoder(nn.Module):
    """Latents to frames; see the module."""

    def __init__(self, shape: SlimShape) -> None:
        super().__init__()
        self.shape = shape
        widths = shape.widths
        self.enter = nn.Conv2d(shape.channels, widths[0], 3, padding=1)
        self.grow = nn.ModuleList(
            nn.Conv2d(before, 4 * width, 1) for before, width in pairwise(widths)
        )
        """From each level to the 2x2 positions of the next."""
        self.blocks = nn.ModuleList(
            nn.ModuleList(MemoryBlock(width) for _ in range(shape.num_blocks)) for width in widths
        )
        self.norm = PositionNorm(shape.width)
        self.leave = nn.Conv2d(shape.width, shape.temporal * 3 * 4, 1)
        """Into the 2x2 pixels of every frame."""
        assert self.leave.bias is not None
        nn.init.constant_(self.leave.bias, 0.5)  # grey: from black the first steps only brighten

    def forward(self, latents: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """Return the frames of a stretch of clips, not yet clamped, and what the next one needs.

        Args:
            latents: [B, C, F, h, w] of unit scale.
            memory: of the stretch before; None begins the clips.

        Returns:
            [B, T, 3, H, W], T being F times `temporal`, less what the first latent frame of a clip
            does not stand for.
        """
        hidden = (torch.tanh(latents / _SOFT_RANGE) * _SOFT_RANGE).transpose(1, 2)
        kept: list[Tensor] = []
        num_rows = hidden.shape[:2]
        hidden = self.enter(hidden.flatten(0, 1)).unflatten(0, num_rows)
        for level, blocks in enumerate(self.blocks):
            if level:
                grown = functional.pixel_shuffle(self.grow[level - 1](hidden.flatten(0, 1)), 2)
                hidden = grown.unflatten(0, num_rows)
            for block in cast(nn.ModuleList, blocks):
                nothing = torch.zeros_like(hidden[:, :1])
                hidden, last = block(hidden, nothing if memory is None else memory[len(kept)])
                kept.append(last)
        ready = functional.silu(self.norm(hidden.flatten(0, 1)))
        pixels = functional.pixel_shuffle(self.leave(ready), 2)
        frames = pixels.unflatten(0, num_rows).unflatten(2, (self.shape.temporal, 3))
        skipped = self.shape.temporal - 1 if memory is None else 0
        return frames.flatten(1, 2)[:, skipped:], tuple(kept)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, F, h, w] -> videos [B, T, 3, H, W] float32 in [0, 1], as `VideoModel.decode`."""
        *_, height, width = _video_size(latents, self.shape)
        num_pixels = len(latents) * self.shape.temporal * height * width
        stream = SlimStream(self)
        at_once = max(1, PIXELS_AT_ONCE // num_pixels)
        return torch.cat([stream.decode(part) for part in latents.split(at_once, dim=2)], dim=1)


class SlimStream:
    """Decodes one stretch of clips after the other; together they are `SlimDecoder.decode`'s."""

    def __init__(self, decoder: SlimDecoder) -> None:
        self._decoder = decoder
        self._memory: Memory | None = None

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the next frames [B, T, 3, H, W] float32 in [0, 1] of the next [B, C, F, h, w]."""
        weight = self._decoder.leave.weight
        frames: Tensor
        frames, self._memory = self._decoder(latents.to(weight), self._memory)
        return frames.clamp(0.0, 1.0)


def _video_size(latents: Tensor, shape: SlimShape) -> tuple[int, int, int, int]:
    """Return (T, 3, H, W) of each clip."""
    *_, frames, height, width = latents.shape
    num_frames = 1 + (frames - 1) * shape.temporal
    return num_frames, 3, height * shape.spatial, width * shape.spatial
