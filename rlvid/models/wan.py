"""Wan text-to-video models (arXiv:2503.20314) and everything else in WanPipeline's folder layout.

The adapter translates between diffusers' conventions (timesteps 0 to 1000, pixels in [-1, 1],
latents of the VAE's own scale) and those of `rlvid.models.base`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.models.native import NativeRange
from rlvid.models.pipeline_model import PipelineModel, read_index
from rlvid.models.scheduler_sigmas import with_timesteps
from rlvid.models.wan_vae import WanVae

NUM_TRAIN_TIMESTEPS = 1000
"""timestep = 1000 * sigma, the scale on which Wan's transformers were trained."""

MAX_SEQUENCE_LENGTH = 512
"""Text tokens, WanPipeline's default; a tokenizer with a shorter `model_max_length` lowers it."""

PROMPT_EMBEDS = "prompt_embeds"
"""The one tensor of a Wan prompt's condition: [B, L, D] float32, zero behind the last token."""


class WanModel(PipelineModel):
    """A WanPipeline as a `VideoModel`."""

    PIPELINE = "WanPipeline"
    VAE = "AutoencoderKLWan"
    NATIVE: ClassVar[NativeRange] = NativeRange(
        num_frames=(None, 81),
        height_width=((480, 832), (832, 480), (720, 1280), (1280, 720)),
        fps=16,
    )
    """github.com/Wan-Video/Wan2.1: `SUPPORTED_SIZES` of t2v-14B, i2v-14B, flf2v-14B and vace-14B,
    of which t2v-1.3B and vace-1.3B have the first two, `frame_num` and `sample_fps`."""
    _vae: WanVae

    def __init__(
        self, pipeline: Any, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(pipeline, device=device, dtype=dtype)
        self._patch_size: tuple[int, int, int] = tuple(pipeline.transformer.config.patch_size)
        self.max_sequence_length = min(pipeline.tokenizer.model_max_length, MAX_SEQUENCE_LENGTH)

    @classmethod
    def open_vae(cls, vae: Any, device: torch.device) -> WanVae:
        return WanVae(vae, device=device)

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Raise ValueError unless `folder` has the layout of a single-transformer WanPipeline."""
        if read_index(folder).get("transformer_2", [None, None])[0] is not None:
            raise ValueError(
                f"model.path: {folder} has two transformers (Wan 2.2 A14B): expected one. "
                "Set model.use to wan_experts."
            )
        super().check_folder(folder)

    def encode_prompt(self, text: str) -> Condition:
        """Return prompt_embeds [1, L, D], L being `max_sequence_length` for every text."""
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        tokens = self._pipeline.tokenizer(
            prompt_clean(text),
            padding="max_length",
            max_length=self.max_sequence_length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.text_device)
        mask = tokens.attention_mask
        states = self._pipeline.text_encoder(tokens.input_ids, mask).last_hidden_state
        return Condition({PROMPT_EMBEDS: states.float() * mask.unsqueeze(-1)})

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the velocity [B, C, F, H, W] float32 at `sigma` [B]; differentiable."""
        return self._predict(latents, sigma.float() * NUM_TRAIN_TIMESTEPS, condition)

    def open_stream(self) -> Callable[[Tensor], Tensor]:
        """Return `decode` for clips that come in parts: next latents to next frames."""
        return self._vae.open_stream()

    def sigmas(self, num_steps: int, num_frames: int, height: int, width: int) -> tuple[float, ...]:
        """Return num_steps + 1 noise levels down to 0, of the folder's scheduler and its shift.

        They do not depend on the clip.
        """
        return tuple(with_timesteps(self._pipeline.scheduler, num_steps).sigmas.tolist())

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (C, F, H, W) for a clip of that size; ValueError when it does not divide."""
        return self._vae.clip_shape(num_frames, height, width, patch=self._patch_size[1:])

    def _predict(
        self, seen: Tensor, timestep: Tensor, condition: Condition, **beside: Tensor | None
    ) -> Tensor:
        """Return what the transformer says [B, C, F, H, W] float32.

        Args:
            seen: latents, with further channels where the family's transformer has them.
            timestep: [B], or of each token.
            beside: further arguments of the transformer.
        """
        told = {name: None if one is None else one.to(self._dtype) for name, one in beside.items()}
        predicted: Tensor = self.transformer(
            hidden_states=seen.to(self._dtype),
            timestep=timestep,
            encoder_hidden_states=condition[PROMPT_EMBEDS].to(self._dtype),
            return_dict=False,
            **told,
        )[0]
        return predicted.float()
