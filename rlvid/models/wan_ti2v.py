"""Wan 2.2 5B: one model for a text alone and for a text with a first frame.

With a first frame the transformer is shown its latents clean, at timestep 0, in place of the first
latent frame, and the rest at the timestep of the noise level (`expand_timesteps`).

What `velocity` says of that frame is in `rlvid.models.given_frames`; the video begins with the
given frame as it does in the pipeline, which puts its latents there after the last step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from rlvid.condition import Condition
from rlvid.models.given_frames import (
    FIRST_FRAME_LATENTS,
    encode_first_frame,
    hold_first_frame,
    show_first_frame,
)
from rlvid.models.native import NativeRange
from rlvid.models.pipeline_model import read_index
from rlvid.models.wan import NUM_TRAIN_TIMESTEPS, WanModel


class WanTextImageModel(WanModel):
    """A WanPipeline with `expand_timesteps` as a `MediaModel`; a first frame is not required.

    Guidance is away from the empty text; the negative has the first frame as well.
    """

    NATIVE: ClassVar[NativeRange] = NativeRange(
        num_frames=(None, 121), height_width=((704, 1280), (1280, 704)), fps=24
    )
    """github.com/Wan-Video/Wan2.2: `SUPPORTED_SIZES` of ti2v-5B, `frame_num` and `sample_fps`."""

    media = frozenset({"first_frame"})
    required_media: frozenset[str] = frozenset()

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Raise ValueError unless `folder` is of a model that is told a timestep for each token."""
        super().check_folder(folder)
        if not read_index(folder).get("expand_timesteps"):
            raise ValueError(
                f"model.path: {folder / 'model_index.json'} has no expand_timesteps: expected "
                "true, as Wan 2.2 TI2V has it. Set model.use to wan for a text-to-video model."
            )

    def encode_media(self, media: Mapping[str, Tensor], num_frames: int) -> Condition:
        """Return first_frame_latents of "first_frame" [B, 3, height, width] in [0, 1]."""
        return Condition({FIRST_FRAME_LATENTS: encode_first_frame(self._vae, media["first_frame"])})

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the velocity [B, C, F, H, W] float32 at `sigma` [B]; differentiable."""
        if FIRST_FRAME_LATENTS not in set(condition):
            return super().velocity(latents, sigma, condition)
        first = condition[FIRST_FRAME_LATENTS]
        seen, timestep = show_first_frame(latents, first), self._timesteps(latents, sigma)
        predicted = self._predict(seen, timestep, condition)
        return hold_first_frame(predicted, latents, first, sigma)

    def _timesteps(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """Return the timestep [B, tokens] of each token, 0 for those of the first frame."""
        of_time, high, wide = self._patch_size
        _, _, frames, height, width = latents.shape
        num_tokens = (height // high) * (width // wide)
        timesteps = sigma.float()[:, None] * NUM_TRAIN_TIMESTEPS
        timesteps = timesteps.repeat(1, frames // of_time * num_tokens)
        timesteps[:, :num_tokens] = 0.0
        return timesteps
