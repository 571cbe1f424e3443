"""Wan image-to-video models: a first frame, or a first and a last one, beside the text.

The transformer sees the latents of the given frames and a mask of them as further channels, and
CLIP's view of them as further tokens (arXiv:2503.20314).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.media import to_picture
from rlvid.models.given_frames import given_tensor, grey_but_for
from rlvid.models.wan import MAX_SEQUENCE_LENGTH, NUM_TRAIN_TIMESTEPS, WanModel

IMAGE_LATENTS = "image_latents"
"""[B, 4 + C, F, H, W] float32: which of the 4 pixel frames of each latent frame are given, then the
latents of a clip that is grey but for them."""
IMAGE_EMBEDS = "image_embeds"
"""[B, P, L, D] float32: CLIP's last hidden states but one, of each of P pictures."""


class WanImageToVideoModel(WanModel):
    """A WanImageToVideoPipeline of one transformer as a `MediaModel`.

    Its configuration says which frames it needs: Wan 2.1 I2V the first (`image_dim` is set), Wan
    2.1 first-last-frame the last as well (`pos_embed_seq_len` is set too). A transformer without an
    image encoder takes a last frame if there is one.

    Pictures are scaled to the clip before CLIP sees them, as the pipeline's own example does.
    Guidance is away from the empty text; the negative has the frames as well.
    """

    PIPELINE = "WanImageToVideoPipeline"

    media = frozenset({"first_frame"})
    required_media = media

    def __init__(
        self, pipeline: Any, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(pipeline, device=device, dtype=dtype)
        config = pipeline.transformer.config
        self._sees_images: bool = config.image_dim is not None
        self._check(pipeline)
        has_last_position = config.pos_embed_seq_len is not None
        if has_last_position or not self._sees_images:
            self.media = frozenset({"first_frame", "last_frame"})
        if has_last_position and self._sees_images:
            self.required_media = self.media
        if self._sees_images:
            pipeline.image_encoder.requires_grad_(False).eval()

    @torch.no_grad()
    def encode_media(self, media: Mapping[str, Tensor], num_frames: int) -> Condition:
        """Return image_latents, and image_embeds where the transformer sees CLIP's.

        Args:
            media: "first_frame" and perhaps "last_frame", [B, 3, height, width] in [0, 1].
            num_frames: of the video to be made.
        """
        first, last = media["first_frame"], media.get("last_frame")
        clips = grey_but_for(media, num_frames)
        # One by one, so that a row does not depend on what it is batched with.
        latents = torch.cat([self._vae.encode(clip[None]) for clip in clips])
        rows, _, *size = latents.shape
        given = latents.new_zeros((rows, self._vae.scale_factor_temporal, *size))
        given[:, :, 0] = 1.0  # The first latent frame stands for one pixel frame.
        if last is not None:
            given[:, -1, -1] = 1.0
        tensors = {IMAGE_LATENTS: torch.cat([given, latents], dim=1)}
        if self._sees_images:
            tensors[IMAGE_EMBEDS] = self._image_embeds([first] if last is None else [first, last])
        return Condition(tensors)

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the velocity [B, C, F, H, W] float32 at `sigma` [B]; differentiable."""
        given = given_tensor(self, condition, IMAGE_LATENTS)
        embeds = condition[IMAGE_EMBEDS] if self._sees_images else None
        return self._predict(
            torch.cat([latents, given], dim=1),
            sigma.float() * NUM_TRAIN_TIMESTEPS,
            condition,
            # The transformer takes the P pictures of a clip one behind the other.
            encoder_hidden_states_image=None if embeds is None else embeds.flatten(0, 1),
        )

    def _image_embeds(self, frames: Sequence[Tensor]) -> Tensor:
        """P pictures [B, 3, height, width] each -> [B, P, L, D], each row by itself."""
        rows = zip(*frames, strict=True)
        return torch.stack(
            [
                self._pipeline.encode_image([to_picture(one) for one in row], self.device).float()
                for row in rows
            ]
        )

    def _check(self, pipeline: Any) -> None:
        """Raise ValueError unless the parts fit each other."""
        config, vae = pipeline.transformer.config, self._vae
        expected = 2 * vae.channels + vae.scale_factor_temporal
        if config.in_channels != expected:
            raise ValueError(
                f"model.path: the transformer takes {config.in_channels} channels: expected "
                f"{expected}, those of latents, mask and given frames. Set model.use to wan or "
                "wan_ti2v for a model without these."
            )
        if self._sees_images and pipeline.image_encoder is None:
            raise ValueError(
                "model.path: the transformer takes CLIP's view of a frame, and the folder has no "
                "image_encoder. Copy the folder again, complete."
            )
        if self._sees_images and self.max_sequence_length != MAX_SEQUENCE_LENGTH:
            raise ValueError(
                f"model.path: the tokenizer ends at {self.max_sequence_length} tokens: expected "
                f"{MAX_SEQUENCE_LENGTH}, by which diffusers' WanAttnProcessor tells text from "
                "picture. Set model_max_length in tokenizer/tokenizer_config.json."
            )
