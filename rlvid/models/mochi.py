"""Mochi 1 text-to-video models (github.com/genmoai/models): MochiPipeline's folder layout.

Mochi runs time the other way round: its timestep is 1000 (1 - sigma), 0 at pure noise, and its
transformer predicts clean - noise. So velocity = -prediction.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.models.input_shapes import InputShapes
from rlvid.models.native import NativeRange
from rlvid.models.pipeline_model import PipelineModel
from rlvid.models.scheduler_sigmas import flow_match_sigmas
from rlvid.models.video_vae import VideoVae

NUM_TRAIN_TIMESTEPS = 1000
"""timestep = 1000 * (1 - sigma)."""

MAX_SEQUENCE_LENGTH = 256
"""Text tokens, MochiPipeline's default; a tokenizer with a shorter `model_max_length` lowers it."""

THRESHOLD_NOISE = 0.025
"""Of the linear-quadratic schedule, as MochiPipeline has it: what the linear half removes."""


class MochiModel(PipelineModel):
    """A MochiPipeline as a `VideoModel`; the pipeline's guidance is rlvid's."""

    PIPELINE = "MochiPipeline"
    VAE = "AutoencoderKLMochi"
    NATIVE: ClassVar[NativeRange] = NativeRange(
        num_frames=(None, 163), height_width=((480, 848),), fps=30.0
    )
    """480p, 30 frames a second for up to 5.4 s (Genmo's release); the 44520 visual tokens of the
    README are 28 latent frames, 163 frames, of 480x848."""

    def __init__(
        self, pipeline: Any, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(pipeline, device=device, dtype=dtype)
        self._patch_size = int(pipeline.transformer.config.patch_size)
        self.max_sequence_length = min(pipeline.tokenizer.model_max_length, MAX_SEQUENCE_LENGTH)

    @classmethod
    def open_vae(cls, vae: Any, device: torch.device) -> VideoVae:
        config = vae.config
        mean, std = config.latents_mean, config.latents_std
        if mean is None or std is None:  # one without the other the pipeline does not read either
            mean = std = None
        return VideoVae(
            vae, device=device, mean=mean, std=std, scaling_factor=config.scaling_factor
        )

    def encode_prompt(self, text: str) -> Condition:
        """Return prompt_embeds [1, L, D] and prompt_mask [1, L], L being `max_sequence_length`.

        The empty prompt's mask is all False where the folder says `force_zeros_for_empty_prompt`.
        """
        embeds, mask, _, _ = self._pipeline.encode_prompt(
            [text],
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.text_device,
        )
        return Condition({"prompt_embeds": embeds.float(), "prompt_mask": mask})

    def input_shapes(self, latent_shape: tuple[int, int, int, int]) -> InputShapes:
        length = self.max_sequence_length
        width = self._pipeline.transformer.config.text_embed_dim
        return InputShapes(
            condition={"prompt_embeds": (length, width), "prompt_mask": (length,)},
            text_tokens={"text_encoder": length},
        )

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the velocity [B, C, F, H, W] float32 at `sigma` [B]; differentiable."""
        towards_clean: Tensor = self.transformer(
            hidden_states=latents.to(self._dtype),
            encoder_hidden_states=condition["prompt_embeds"].to(self._dtype),
            timestep=(1.0 - sigma.float()) * NUM_TRAIN_TIMESTEPS,
            encoder_attention_mask=condition["prompt_mask"],
            return_dict=False,
        )[0]
        return -towards_clean.float()

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (C, F, H, W) for a clip of that size; ValueError when it does not divide."""
        patch = (self._patch_size, self._patch_size)
        return self._vae.clip_shape(num_frames, height, width, patch=patch)

    def sigmas(self, num_steps: int, num_frames: int, height: int, width: int) -> tuple[float, ...]:
        """Return the num_steps + 1 noise levels of MochiPipeline, the same for every size.

        Its scheduler has them inverted (`invert_sigmas`): 0 is noise there, 1 is clean.
        """
        self.latent_shape(num_frames, height, width)
        scheduler = self._pipeline.scheduler
        if not scheduler.config.invert_sigmas:
            raise ValueError(
                "model.path: scheduler: invert_sigmas is False: expected True, for Mochi's "
                "transformer predicts clean - noise. Copy the folder's scheduler again."
            )
        inverted = flow_match_sigmas(scheduler, linear_quadratic_sigmas(num_steps))
        return tuple(1.0 - sigma for sigma in inverted)


def linear_quadratic_sigmas(num_steps: int) -> list[float]:
    """Return num_steps noise levels, descending from 1, the first half evenly, then in a parabola.

    With n steps, half = n // 2 of them linear, and t = `THRESHOLD_NOISE`: the clean part 1 - sigma
    is t j / half up to step half; from there on it is the parabola through the same value and slope
    that is 1 at step n (Genmo's `linear_quadratic_schedule`).
    """
    if num_steps < 2:
        raise ValueError(f"sigmas: num_steps: Mochi's schedule takes at least 2, got {num_steps}")
    half = num_steps // 2
    slope = THRESHOLD_NOISE / half
    rest = num_steps - half
    curvature = (1.0 - THRESHOLD_NOISE - slope * rest) / rest**2
    clean = [slope * j for j in range(half)]
    clean += [THRESHOLD_NOISE + slope * k + curvature * k**2 for k in range(rest)]
    return [1.0 - one for one in clean]
