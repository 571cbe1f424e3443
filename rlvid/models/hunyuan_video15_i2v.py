"""HunyuanVideo-1.5 image-to-video models: a first frame beside the text.

The transformer sees the frame's latents and a mask of the first latent frame as further channels,
and SigLIP's view of the frame as further tokens (arXiv:2511.18870).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.media import to_picture
from rlvid.models.given_frames import given_tensor
from rlvid.models.hunyuan_video15 import HunyuanVideo15Model
from rlvid.models.input_shapes import InputShapes

IMAGE_LATENTS = "image_latents"
"""[B, C + 1, F, H, W] float32: latents that are zero behind the first frame, then a mask of it."""
IMAGE_EMBEDS = "image_embeds"
"""[B, N, D] float32: SigLIP's last hidden states."""


class HunyuanVideo15ImageModel(HunyuanVideo15Model):
    """A HunyuanVideo15ImageToVideoPipeline as a `MediaModel`.

    The pipeline chooses the size of the clip by the shape of the picture; here the recipe names it.
    Guidance is away from the empty text; the negative has the frame as well.
    """

    PIPELINE = "HunyuanVideo15ImageToVideoPipeline"
    PARTS = (*HunyuanVideo15Model.PARTS, "image_encoder", "feature_extractor")
    ENCODERS = (*HunyuanVideo15Model.ENCODERS, "image_encoder")

    def __init__(
        self, pipeline: Any, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(pipeline, device=device, dtype=dtype)
        if pipeline.transformer.config.use_meanflow:
            raise ValueError(
                "model.path: the transformer is distilled to few steps (use_meanflow) and asks for "
                "the noise level after the next step: expected one that asks for its own alone. "
                "Use a folder that is not distilled, or distilled from guidance only."
            )
        self.media = self.required_media = frozenset({"first_frame"})

    @torch.no_grad()
    def encode_media(self, media: Mapping[str, Tensor], num_frames: int) -> Condition:
        """Return image_latents and image_embeds.

        Args:
            media: "first_frame", [B, 3, height, width] in [0, 1].
            num_frames: of the video to be made.
        """
        first = media["first_frame"]
        _, frames, *_ = self.latent_shape(num_frames, *first.shape[-2:])
        latents = self._vae.encode(first[:, None])
        given = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
        # Row by row, so that one does not depend on what it is batched with.
        views = [
            self._pipeline.encode_image(
                to_picture(picture), batch_size=1, device=self.device, dtype=self._dtype
            )
            for picture in first
        ]
        return Condition(
            {
                IMAGE_LATENTS: torch.nn.functional.pad(given, (0, 0, 0, 0, 0, frames - 1)),
                IMAGE_EMBEDS: torch.cat(views).float(),
            }
        )

    def input_shapes(self, latent_shape: tuple[int, int, int, int]) -> InputShapes:
        told = super().input_shapes(latent_shape)
        channels, *size = latent_shape
        vision = self._pipeline.image_encoder.config
        tokens = ((vision.image_size // vision.patch_size) ** 2, vision.hidden_size)
        picture = {IMAGE_LATENTS: (channels + 1, *size), IMAGE_EMBEDS: tokens}
        return replace(told, condition={**told.condition, **picture})

    def _picture(self, latents: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        return given_tensor(self, condition, IMAGE_LATENTS), condition[IMAGE_EMBEDS]
