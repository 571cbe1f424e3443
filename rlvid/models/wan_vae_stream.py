"""Frames of a Wan VAE as latents arrive: its decoder is causal, so the end need not be there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rlvid.models.wan_vae import WanVae


class WanVaeStream:
    """Decodes one stretch of clips after the other; together they are `WanVae.decode`'s frames.

    It keeps the last frames that each convolution of the decoder looks back on, so its memory does
    not grow. AutoencoderKLWan decodes a latent frame at a time as well, with a cache that it clears
    at the end of every call; this one is kept between calls, outside the module.
    """

    def __init__(self, vae: WanVae) -> None:
        self._vae = vae
        self._features: list[Any] = [None] * int(vae.module._cached_conv_counts["decoder"])
        self._is_first = True

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the next frames [B, T, 3, height, width] float32 in [0, 1].

        T is F times the temporal scale, and for the first stretch 1 + (F - 1) times it.

        Args:
            latents: [B, C, F, H, W], the latent frames behind those decoded so far.
        """
        module = self._vae.module
        hidden = module.post_quant_conv(self._vae.unscale(latents))
        pixels = []
        for frame in hidden.split(1, dim=2):
            settings = {"first_chunk": True} if self._is_first else {}
            pixels.append(
                module.decoder(frame, feat_cache=self._features, feat_idx=[0], **settings)
            )
            self._is_first = False
        return self._vae.to_videos(self._unpatched(torch.cat(pixels, dim=2)))

    def _unpatched(self, pixels: Tensor) -> Tensor:
        """Undo the pixel patches of the Wan 2.2 VAE; other VAEs have none."""
        patch_size = self._vae.module.config.patch_size
        if patch_size is None:
            return pixels
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        whole: Tensor = unpatchify(pixels, patch_size=patch_size)
        return whole
