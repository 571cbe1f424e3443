"""The VAE of Wan pipelines, which also decodes clips as they are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvid.models.video_vae import VideoVae, read_vae
from rlvid.models.wan_vae_stream import WanVaeStream


class WanVae(VideoVae):
    """diffusers' AutoencoderKLWan."""

    def __init__(self, vae: Any, *, device: torch.device) -> None:
        """`vae` is an AutoencoderKLWan on `device`."""
        super().__init__(
            vae,
            device=device,
            mean=vae.config.latents_mean,
            std=vae.config.latents_std,
            scale_factor_temporal=int(vae.config.scale_factor_temporal),
            scale_factor_spatial=int(vae.config.scale_factor_spatial),
        )

    @classmethod
    def load(cls, folder: Path, *, device: torch.device) -> WanVae:
        """Read `vae/` of a pipeline folder and nothing else of it; ValueError when it does not."""
        return cls(read_vae(folder, "AutoencoderKLWan", device=device), device=device)

    def open_stream(self) -> Callable[[Tensor], Tensor]:
        """Return `decode` for clips that come in parts; see `WanVaeStream.decode`."""
        return WanVaeStream(self).decode
