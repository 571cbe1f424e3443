"""CogVideoX image-to-video models, 1.0 and 1.5: a first frame beside the text.

The transformer sees the frame's latents as further channels, zero behind the first latent frame.
The pipeline draws them from the VAE's posterior; here they are its mode, so that rollout and
learner are told the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlvid.condition import Condition
from rlvid.models.cogvideox import CogVideoXModel
from rlvid.models.given_frames import FIRST_FRAME_LATENTS, encode_first_frame, given_tensor
from rlvid.models.input_shapes import InputShapes
from rlvid.models.native import NativeRange


class CogVideoXImageToVideoModel(CogVideoXModel):
    """A CogVideoXImageToVideoPipeline as a `MediaModel`.

    Guidance is away from the empty text; the negative has the first frame as well.
    """

    PIPELINE = "CogVideoXImageToVideoPipeline"
    NATIVE: ClassVar[NativeRange] = CogVideoXModel.NATIVE

    media = frozenset({"first_frame"})
    required_media = media

    def encode_media(self, media: Mapping[str, Tensor], num_frames: int) -> Condition:
        """Return first_frame_latents of "first_frame" [B, 3, height, width] in [0, 1].

        CogVideoX 1.5 was trained on latents divided by the scaling factor (`invert_scale_latents`).
        """
        latents = encode_first_frame(self._vae, media["first_frame"])
        config = self.vae.config
        if config.invert_scale_latents:
            latents = latents / config.scaling_factor**2
        return Condition({FIRST_FRAME_LATENTS: latents})

    def input_shapes(self, latent_shape: tuple[int, int, int, int]) -> InputShapes:
        told = super().input_shapes(latent_shape)
        channels, _, *size = latent_shape
        first = {FIRST_FRAME_LATENTS: (channels, 1, *size)}
        return replace(told, condition={**told.condition, **first})

    def _shown(self, state: Tensor, condition: Condition) -> Tensor:
        first = given_tensor(self, condition, FIRST_FRAME_LATENTS)
        behind = (0, 0, 0, 0, 0, state.shape[2] - 1)
        return torch.cat([state, pad(first, behind)], dim=1)
