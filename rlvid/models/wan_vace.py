"""Wan VACE: a control clip, a first and a last frame, in any combination, beside the text.

VACE (arXiv:2503.07598) tells the transformer a clip and which of its pixels are to be made anew: a
picture is a frame to keep, a depth map, sketch or pose a frame to follow. A branch of blocks of its
own reads both and adds to the other blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rlvid.condition import Condition
from rlvid.media import PLACES
from rlvid.models.given_frames import GREY, grey_but_for
from rlvid.models.input_shapes import InputShapes
from rlvid.models.wan import NUM_TRAIN_TIMESTEPS, PROMPT_EMBEDS, WanModel

CONTROL_LATENTS = "control_latents"
"""[B, 2 C + s * s, F, H, W] float32, s the VAE's pixels each way for a latent one: latents of the
frames to keep, of the frames to follow, grey in place of the others, and the mask of the latter."""


class WanControlModel(WanModel):
    """A WanVACEPipeline of one transformer as a `MediaModel`; no medium is required.

    A first or last frame beside a control clip takes the place of the clip's own. Guidance is away
    from the empty text; the negative has the media as well. Left out of the pipeline's options are
    reference pictures, masks of parts of a frame and scales of the branch other than 1.
    """

    PIPELINE = "WanVACEPipeline"

    media = frozenset({"control", "first_frame", "last_frame"})
    required_media: frozenset[str] = frozenset()

    def __init__(
        self, pipeline: Any, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(pipeline, device=device, dtype=dtype)
        self._grey: Tensor | None = None
        expected, found = self._num_channels, pipeline.transformer.config.vace_in_channels
        if found != expected:
            raise ValueError(
                f"model.path: the transformer is told {found} channels: expected {expected}, "
                "those of two latents and a mask. Take transformer and VAE of one model."
            )

    def input_shapes(self, latent_shape: tuple[int, int, int, int]) -> InputShapes:
        length, width = self.max_sequence_length, self._pipeline.transformer.config.text_dim
        return InputShapes(
            condition={
                PROMPT_EMBEDS: (length, width),
                CONTROL_LATENTS: (self._num_channels, *latent_shape[1:]),
            },
            text_tokens={"text_encoder": length},
        )

    @torch.no_grad()
    def encode_media(self, media: Mapping[str, Tensor], num_frames: int) -> Condition:
        """Return control_latents.

        Args:
            media: "control" [B, T, 3, height, width], "first_frame" and "last_frame" [B, 3, height,
                width], in [0, 1]; at least one of them.
            num_frames: T, of the video to be made.
        """
        kept = grey_but_for(media, num_frames)
        to_follow = media["control"].clone() if "control" in media else torch.full_like(kept, GREY)
        is_made = kept.new_ones(num_frames)
        for name in PLACES.keys() & media.keys():
            to_follow[:, PLACES[name]] = GREY
            is_made[PLACES[name]] = 0.0
        # One by one, so that a row does not depend on what it is batched with.
        rows = [
            torch.cat([self._vae.encode(clip[None]) for clip in pair], dim=1)
            for pair in zip(kept, to_follow, strict=True)
        ]
        latents = torch.cat(rows)
        return Condition({CONTROL_LATENTS: torch.cat([latents, self._mask(is_made, latents)], 1)})

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the velocity [B, C, F, H, W] float32 at `sigma` [B]; differentiable.

        Of a text alone it is told a grey clip to follow, as the pipeline tells it.
        """
        if CONTROL_LATENTS in set(condition):
            told = condition[CONTROL_LATENTS]
        else:
            told = self._told_nothing(latents).expand(len(latents), -1, -1, -1, -1)
        timestep = sigma.float() * NUM_TRAIN_TIMESTEPS
        return self._predict(latents, timestep, condition, control_hidden_states=told)

    @property
    def _num_channels(self) -> int:
        return 2 * self._vae.channels + self._vae.scale_factor_spatial**2

    def _mask(self, is_made: Tensor, latents: Tensor) -> Tensor:
        """Return [B, s * s, F, H, W] of is_made [T]: 1 where a pixel is to be made.

        Which of its pixel frames speaks for a latent one is the nearest to its middle, as VACE was
        trained (`vace_encode_masks` of github.com/ali-vilab/VACE): not the first for the first.
        """
        rows, _, *size = latents.shape
        of_latents = interpolate(is_made[None, None], size=size[0], mode="nearest-exact")
        mask = of_latents.reshape(1, 1, size[0], 1, 1)
        return mask.expand(rows, self._vae.scale_factor_spatial**2, *size)

    def _told_nothing(self, latents: Tensor) -> Tensor:
        """Return the control latents [1, ...] of a grey clip as long and large as `latents`."""
        if self._grey is None or self._grey.shape[2:] != latents.shape[2:]:
            num_frames, height, width = self.clip_size(latents.shape[1:])
            # No inference tensor: a kept one could not take part in a later training forward.
            with torch.inference_mode(False):
                grey = torch.full((1, num_frames, 3, height, width), GREY, device=self.device)
                told = self.encode_media({"control": grey}, num_frames)
            self._grey = told[CONTROL_LATENTS]
        return self._grey
