"""Cosmos-Predict 2.5 world models (arXiv:2511.00062), in Cosmos2_5_PredictBasePipeline's folder.

One model for a text alone and for a text with a first frame. It is a flow model in rlvid's own
terms: the transformer is told sigma as it is and predicts noise - clean. So there is no change of
coordinates; Cosmos-Predict 1 and 2, whose pipelines count noise levels as EDM does, are not read.

A first frame is shown to the transformer clean, marked by a mask channel and at a timestep near 0.
Its velocity is known, (x - z) / sigma (`rlvid.models.given_frames`). The pipeline moves it
along noise - z from its first level, 0.995, which leaves half a per cent of the noise in; here that
frame ends at z.

Guidance: the pipeline adds guidance_scale (cond - negative) to cond, so its scale is 1 less than
that of rlvid: its default of 7 is rlvid's 8. The negative is the empty text; the pipeline's own is
a paragraph.

NVIDIA's guardrail (the package cosmos_guardrail) is no part of this model and rlvid does not run
it: neither on prompts nor on videos. The NVIDIA Open Model License has terms about that; whoever
serves such a model runs its folder in the pipeline, with the guardrail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.flow.sde import per_row
from rlvid.models.given_frames import (
    FIRST_FRAME_LATENTS,
    encode_first_frame,
    hold_first_frame,
    show_first_frame,
)
from rlvid.models.input_shapes import InputShapes
from rlvid.models.native import NativeRange
from rlvid.models.pipeline_model import PipelineModel
from rlvid.models.scheduler_sigmas import with_timesteps
from rlvid.models.wan_vae import WanVae

MAX_SEQUENCE_LENGTH = 512
"""Text tokens, the pipeline's default; a tokenizer with a shorter `model_max_length` lowers it."""

FIRST_FRAME_TIMESTEP = 1e-4
"""The pipeline's default `conditional_frame_timestep`."""

PROMPT_EMBEDS = "prompt_embeds"
"""[B, L, D] in the text encoder's type: all its hidden states side by side, each normalised. For
Qwen2.5-VL 7B D is 100352 and one text takes 103 MB in bfloat16."""


class GuardrailNotRun:
    """Stands where the pipeline must have NVIDIA's guardrail; it is saved as none."""

    def to(self, device: Any) -> NoReturn:
        """Raise RuntimeError: the pipeline is about to ask the guardrail."""
        raise RuntimeError(
            "cosmos: this pipeline was opened without its guardrail, for training: expected calls "
            "of its parts alone. Load the folder with diffusers, and cosmos_guardrail installed."
        )


class CosmosModel(PipelineModel):
    """A Cosmos2_5_PredictBasePipeline as a `MediaModel`; a first frame is not required."""

    PIPELINE = "Cosmos2_5_PredictBasePipeline"
    VAE = "AutoencoderKLWan"
    NATIVE: ClassVar[NativeRange] = NativeRange(
        num_frames=(1, 93), height_width=((704, 1280),), fps=16
    )
    """The pipeline's defaults and its documentation's examples."""

    media = frozenset({"first_frame"})
    required_media: frozenset[str] = frozenset()

    def __init__(
        self, pipeline: Any, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(pipeline, device=device, dtype=dtype)
        self._patch_size: tuple[int, int, int] = tuple(pipeline.transformer.config.patch_size)
        self.max_sequence_length = min(pipeline.tokenizer.model_max_length, MAX_SEQUENCE_LENGTH)

    @classmethod
    def parts_beside(cls) -> dict[str, Any]:
        return {"safety_checker": GuardrailNotRun()}

    @classmethod
    def open_vae(cls, vae: Any, device: torch.device) -> WanVae:
        return WanVae(vae, device=device)

    def encode_prompt(self, text: str) -> Condition:
        """Return prompt_embeds [1, L, D], L being `max_sequence_length` for every text."""
        embeds, _ = self._pipeline.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.text_device,
        )
        return Condition({PROMPT_EMBEDS: embeds})

    def encode_media(self, media: Mapping[str, Tensor], num_frames: int) -> Condition:
        """Return first_frame_latents of "first_frame" [B, 3, height, width] in [0, 1]."""
        return Condition({FIRST_FRAME_LATENTS: encode_first_frame(self._vae, media["first_frame"])})

    def input_shapes(self, latent_shape: tuple[int, int, int, int]) -> InputShapes:
        length, config = self.max_sequence_length, self._pipeline.transformer.config
        projects = config.use_crossattn_projection
        width = config.crossattn_proj_in_channels if projects else config.text_embed_dim
        return InputShapes(
            condition={PROMPT_EMBEDS: (length, width)}, text_tokens={"text_encoder": length}
        )

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the velocity [B, C, F, H, W] float32 at `sigma` [B]; differentiable."""
        level = per_row(sigma.float(), latents)
        given = torch.zeros_like(latents[:, :1])
        timestep = level.repeat(1, 1, latents.shape[2], 1, 1)
        if FIRST_FRAME_LATENTS not in set(condition):
            return self._predict(latents, timestep, given, condition)
        first = condition[FIRST_FRAME_LATENTS]
        given[:, :, 0] = 1.0
        timestep[:, :, 0] = FIRST_FRAME_TIMESTEP
        shown = show_first_frame(latents, first)
        predicted = self._predict(shown, timestep, given, condition)
        return hold_first_frame(predicted, latents, first, sigma)

    def sigmas(self, num_steps: int, num_frames: int, height: int, width: int) -> tuple[float, ...]:
        """Return the num_steps + 1 levels of the pipeline's scheduler, which end in 0.

        It spaces sigma / (1 - sigma) as Karras et al. do (arXiv:2206.00364), from 200 to 0.01.
        """
        return tuple(with_timesteps(self._pipeline.scheduler, num_steps).sigmas.tolist())

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (C, F, H, W) for a clip of that size; ValueError when it does not divide."""
        return self._vae.clip_shape(num_frames, height, width, patch=self._patch_size[1:])

    def _predict(
        self, latents: Tensor, timestep: Tensor, given: Tensor, condition: Condition
    ) -> Tensor:
        """Return the transformer's velocity [B, C, F, H, W] float32.

        Args:
            timestep: [B, 1, F, 1, 1], of each latent frame.
            given: [B, 1, F, H, W], 1 where the latents are known.
        """
        velocity: Tensor = self.transformer(
            hidden_states=latents.to(self._dtype),
            condition_mask=given.to(self._dtype),
            timestep=timestep,
            encoder_hidden_states=condition[PROMPT_EMBEDS].to(self._dtype),
            # Of a picture padded to a common size; nothing is padded here.
            padding_mask=latents.new_zeros(1, 1, *latents.shape[3:], dtype=self._dtype),
            return_dict=False,
        )[0]
        return velocity.float()
