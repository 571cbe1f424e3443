"""HunyuanVideo text-to-video models (arXiv:2412.03603), in HunyuanVideoPipeline's folder layout.

Timesteps are 1000 sigma and the transformer predicts the velocity. A prompt is read by Llama in a
template, the states of whose beginning are cut off, and by CLIP, which gives a pooled vector.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.models.input_shapes import InputShapes
from rlvid.models.native import NativeRange
from rlvid.models.pipeline_model import PipelineModel
from rlvid.models.scheduler_sigmas import flow_match_sigmas, linear_sigmas
from rlvid.models.video_vae import VideoVae

NUM_TRAIN_TIMESTEPS = 1000
"""timestep = 1000 * sigma."""

MAX_SEQUENCE_LENGTH = 256
"""Tokens of the prompt behind the template's beginning, HunyuanVideoPipeline's default; a tokenizer
with a shorter `model_max_length` lowers it."""


class HunyuanVideoModel(PipelineModel):
    """A HunyuanVideoPipeline as a `VideoModel`.

    The released weights are distilled from guidance: their transformer is told a guidance scale,
    `EMBEDDED_GUIDANCE`, in one forward for each step. By default the pipeline guides by that alone,
    so sample and train at rlvid's guidance scale 1; any other is the pipeline's `true_cfg_scale`, a
    second forward on top, with the embedded scale in both. A folder whose transformer has no
    `guidance_embeds` leaves the embedded scale unread.
    """

    PIPELINE = "HunyuanVideoPipeline"
    PARTS = (*PipelineModel.PARTS, "text_encoder_2", "tokenizer_2")
    ENCODERS = ("text_encoder", "text_encoder_2")
    VAE = "AutoencoderKLHunyuanVideo"
    EMBEDDED_GUIDANCE: ClassVar[float] = 6.0
    """HunyuanVideoPipeline's default `guidance_scale`, `--embedded-cfg-scale` of Tencent's code; a
    subclass may set another."""
    NATIVE: ClassVar[NativeRange] = NativeRange(
        num_frames=(None, 129),
        height_width=(
            *((960, 544), (544, 960), (624, 832), (832, 624), (720, 720)),
            *((1280, 720), (720, 1280), (1104, 832), (832, 1104), (960, 960)),
        ),
        fps=24.0,
    )
    """The table of supported settings in Tencent's README, all of 129 frames; its sample_video.py
    writes 24 frames a second."""

    def __init__(
        self, pipeline: Any, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(pipeline, device=device, dtype=dtype)
        from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import (
            DEFAULT_PROMPT_TEMPLATE,
        )

        config = pipeline.transformer.config
        if config.image_condition_type is not None:
            raise ValueError(
                "model.path: transformer: image_condition_type "
                f"{config.image_condition_type!r}: expected none, as of a text-to-video model."
            )
        self._patch_size: int = config.patch_size
        self._template_length = int(DEFAULT_PROMPT_TEMPLATE["crop_start"])
        self.max_sequence_length = min(
            pipeline.tokenizer.model_max_length - self._template_length, MAX_SEQUENCE_LENGTH
        )

    @classmethod
    def open_vae(cls, vae: Any, device: torch.device) -> VideoVae:
        return VideoVae(vae, device=device, scaling_factor=vae.config.scaling_factor)

    def encode_prompt(self, text: str) -> Condition:
        """Return prompt_embeds [1, L, D], prompt_mask [1, L] and pooled_embeds [1, P], float32."""
        embeds, pooled, mask = self._pipeline.encode_prompt(
            text, device=self.text_device, max_sequence_length=self.max_sequence_length
        )
        return Condition(
            {
                "prompt_embeds": embeds.float(),
                "prompt_mask": mask.float(),
                "pooled_embeds": pooled.float(),
            }
        )

    def input_shapes(self, latent_shape: tuple[int, int, int, int]) -> InputShapes:
        length, config = self.max_sequence_length, self._pipeline.transformer.config
        return InputShapes(
            condition={
                "prompt_embeds": (length, config.text_embed_dim),
                "prompt_mask": (length,),
                "pooled_embeds": (config.pooled_projection_dim,),
            },
            text_tokens={
                "text_encoder": self._template_length + length,
                "text_encoder_2": self._pipeline.tokenizer_2.model_max_length,
            },
        )

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the velocity [B, C, F, H, W] float32 at `sigma` [B]; differentiable.

        The guidance scale, times 1000, is told in the transformer's dtype: in bfloat16 the default
        6000 is 5984, as it is in the pipeline and in Tencent's code.
        """
        guidance = torch.full(
            sigma.shape, self.EMBEDDED_GUIDANCE, dtype=self._dtype, device=latents.device
        )
        velocity: Tensor = self.transformer(
            hidden_states=latents.to(self._dtype),
            timestep=sigma.float() * NUM_TRAIN_TIMESTEPS,
            encoder_hidden_states=condition["prompt_embeds"].to(self._dtype),
            encoder_attention_mask=condition["prompt_mask"].to(self._dtype),
            pooled_projections=condition["pooled_embeds"].to(self._dtype),
            guidance=guidance * NUM_TRAIN_TIMESTEPS,
            return_dict=False,
        )[0]
        return velocity.float()

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (C, F, H, W) for a clip of that size; ValueError when it does not divide."""
        patch = (self._patch_size, self._patch_size)
        return self._vae.clip_shape(num_frames, height, width, patch=patch)

    def sigmas(self, num_steps: int, num_frames: int, height: int, width: int) -> tuple[float, ...]:
        """Return the num_steps + 1 noise levels of HunyuanVideoPipeline, the same for any clip."""
        return flow_match_sigmas(self._pipeline.scheduler, linear_sigmas(num_steps))
