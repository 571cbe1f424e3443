"""A diffusers VAE: between latents of unit scale and pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvid.models.clip_shape import latent_shape

PIXELS_AT_ONCE = 2**20
"""Clips go through together up to so many pixels of all their frames, else one at a time: together
small ones are several times as fast, and a group of large ones needs the memory of one."""


class VideoVae:
    """A VAE kept in float32 (in bfloat16 it bands), and the statistics of its latents.

    A latent of unit scale is (z - mean) / std * scaling_factor, z being the VAE's own; of a family
    that has one shift it is the mean of every channel.
    """

    def __init__(
        self,
        vae: Any,
        *,
        device: torch.device,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scaling_factor: float = 1.0,
        scale_factor_temporal: int | None = None,
        scale_factor_spatial: int | None = None,
    ) -> None:
        """`vae` is a module of diffusers on `device`.

        Args:
            mean, std: of its C channels; None where the family has none.
            scale_factor_temporal, scale_factor_spatial: None where the module has them itself, as
                `temporal_compression_ratio` and `spatial_compression_ratio`.
        """
        self.module = vae.requires_grad_(False).eval()
        mean = [0.0] * vae.config.latent_channels if mean is None else mean
        self.channels = len(mean)
        std = [1.0] * self.channels if std is None else std
        if scale_factor_temporal is None:
            scale_factor_temporal = int(vae.temporal_compression_ratio)
        if scale_factor_spatial is None:
            scale_factor_spatial = int(vae.spatial_compression_ratio)
        self.scale_factor_temporal = scale_factor_temporal
        """Pixel frames behind the first that one latent frame stands for."""
        self.scale_factor_spatial = scale_factor_spatial
        """Pixels that one latent position is wide and high."""
        self._device = device
        shape = (1, self.channels, 1, 1, 1)
        self._mean = torch.tensor(mean, device=device).view(shape)
        self._std = torch.tensor([one / scaling_factor for one in std], device=device).view(shape)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, F, H, W] -> videos [B, T, 3, height, width] float32 in [0, 1]."""
        return self.decode_with_gradient(latents)

    def decode_with_gradient(self, latents: Tensor) -> Tensor:
        """Return the bits of `decode`, differentiable; the activations of all clips are kept."""
        unscaled = self.unscale(latents)
        *_, frames, height, width = latents.shape
        num_frames = 1 + (frames - 1) * self.scale_factor_temporal
        num_pixels = num_frames * height * width * self.scale_factor_spatial**2
        parts = unscaled.split(max(1, PIXELS_AT_ONCE // num_pixels))
        return self.to_videos(torch.cat([self._decode(part) for part in parts]))

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Tensor:
        """[B, T, 3, height, width] in [0, 1] -> latents [B, C, F, H, W] float32, the mode."""
        pixels = videos.to(self._device, torch.float32).permute(0, 2, 1, 3, 4) * 2.0 - 1.0
        parts = pixels.split(max(1, PIXELS_AT_ONCE // pixels[0, 0].numel()))
        return (torch.cat([self._encode(part) for part in parts]) - self._mean) / self._std

    def unscale(self, latents: Tensor) -> Tensor:
        """Return latents of unit scale in the VAE's own, on its device, float32."""
        return latents.to(self._device, torch.float32) * self._std + self._mean

    def to_videos(self, pixels: Tensor) -> Tensor:
        """[B, 3, T, height, width] in [-1, 1] -> [B, T, 3, height, width] in [0, 1]."""
        return pixels.permute(0, 2, 1, 3, 4).div(2.0).add(0.5).clamp(0.0, 1.0).contiguous()

    def clip_shape(
        self, num_frames: int, height: int, width: int, *, patch: tuple[int, int] = (1, 1)
    ) -> tuple[int, int, int, int]:
        """Return (C, F, H, W) of the latents of a clip.

        Args:
            patch: latent positions, high and wide, of a token of the transformer.

        Raises:
            ValueError: the clip does not divide.
        """
        return latent_shape(
            (num_frames, height, width),
            channels=self.channels,
            temporal=self.scale_factor_temporal,
            spatial=self.scale_factor_spatial,
            patch=patch,
        )

    def clip_size(self, latent_shape: Sequence[int]) -> tuple[int, int, int]:
        """Return (num_frames, height, width) of the clip whose latents have shape (C, F, H, W)."""
        _, frames, height, width = latent_shape
        spatial = self.scale_factor_spatial
        return 1 + (frames - 1) * self.scale_factor_temporal, height * spatial, width * spatial

    def _decode(self, latents: Tensor) -> Tensor:
        """[B, C, F, H, W] of the VAE's own scale -> [B, 3, T, height, width] in [-1, 1]."""
        pixels: Tensor = self.module.decode(latents, return_dict=False)[0]
        return pixels

    def _encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, T, height, width] in [-1, 1] -> [B, C, F, H, W] of the VAE's own scale."""
        latents: Tensor = self.module.encode(pixels, return_dict=False)[0].mode()
        return latents


def read_vae(folder: Path, class_name: str, *, device: torch.device) -> Any:
    """Read `vae/` of a pipeline folder and nothing else of it.

    Args:
        class_name: of diffusers.

    Raises:
        ValueError: it does not load.
    """
    import diffusers

    try:
        vae = getattr(diffusers, class_name).from_pretrained(
            folder, subfolder="vae", local_files_only=True, torch_dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"model.path: {folder / 'vae'} does not load as an {class_name}: {reason}. "
            "Copy the folder again, complete."
        ) from error
    return vae.to(device)
