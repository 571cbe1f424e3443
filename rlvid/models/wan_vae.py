"""The VAE of Wan pipelines: between latents of unit scale and pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvid.models.wan_vae_stream import WanVaeStream

PIXELS_AT_ONCE = 2**20
"""Clips go through together up to so many pixels of all their frames, else one at a time: together
small ones are several times as fast, and a group of large ones needs the memory of one."""


class WanVae:
    """diffusers' AutoencoderKLWan, kept in float32: in bfloat16 it bands."""

    def __init__(self, vae: Any, *, device: torch.device) -> None:
        """`vae` is an AutoencoderKLWan on `device`."""
        self.module = vae.requires_grad_(False).eval()
        self.channels = int(vae.config.z_dim)
        self.scale_factor_temporal = int(vae.config.scale_factor_temporal)
        """Pixel frames behind the first that one latent frame stands for."""
        self.scale_factor_spatial = int(vae.config.scale_factor_spatial)
        """Pixels that one latent position is wide and high."""
        self._device = device
        shape = (1, self.channels, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean, device=device).view(shape)
        self._std = torch.tensor(vae.config.latents_std, device=device).view(shape)

    @classmethod
    def load(cls, folder: Path, *, device: torch.device) -> WanVae:
        """Read `vae/` of a pipeline folder and nothing else of it; ValueError when it does not."""
        from diffusers import AutoencoderKLWan

        try:
            vae = AutoencoderKLWan.from_pretrained(
                folder, subfolder="vae", local_files_only=True, torch_dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"model.path: {folder / 'vae'} does not load as an AutoencoderKLWan: {reason}. "
                "Copy the folder again, complete."
            ) from error
        return cls(vae.to(device), device=device)

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
        pixels = torch.cat([self.module.decode(part, return_dict=False)[0] for part in parts])
        return self.to_videos(pixels)

    def open_stream(self) -> Callable[[Tensor], Tensor]:
        """Return `decode` for clips that come in parts; see `WanVaeStream.decode`."""
        return WanVaeStream(self).decode

    def unscale(self, latents: Tensor) -> Tensor:
        """Return latents of unit scale in the VAE's own, on its device, float32."""
        return latents.to(self._device, torch.float32) * self._std + self._mean

    def to_videos(self, pixels: Tensor) -> Tensor:
        """[B, 3, T, height, width] in [-1, 1] -> [B, T, 3, height, width] in [0, 1]."""
        return pixels.permute(0, 2, 1, 3, 4).div(2.0).add(0.5).clamp(0.0, 1.0).contiguous()

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Tensor:
        """[B, T, 3, height, width] in [0, 1] -> latents [B, C, F, H, W] float32, the mode."""
        pixels = videos.to(self._device, torch.float32).permute(0, 2, 1, 3, 4) * 2.0 - 1.0
        parts = pixels.split(max(1, PIXELS_AT_ONCE // pixels[0, 0].numel()))
        mode = torch.cat([self.module.encode(part, return_dict=False)[0].mode() for part in parts])
        return (mode - self._mean) / self._std
