"""LTX-Video text-to-video models (arXiv:2501.00103): whatever is in LTXPipeline's folder layout.

Timesteps are 1000 sigma and the transformer predicts the velocity; it takes a latent position as a
token, frames first. Where tokens lie is told in seconds, so the frame rate is part of the input.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.models.input_shapes import InputShapes
from rlvid.models.native import NativeRange
from rlvid.models.pipeline_model import PipelineModel
from rlvid.models.scheduler_sigmas import flow_match_sigmas, linear_sigmas, token_shift
from rlvid.models.video_vae import VideoVae

NUM_TRAIN_TIMESTEPS = 1000
"""timestep = 1000 * sigma."""


class LtxVae(VideoVae):
    """diffusers' AutoencoderKLLTXVideo, and that of LTX-2, AutoencoderKLLTX2Video.

    From LTX-Video 0.9.1 on the decoder is told the noise level of its latents and takes the last
    denoising step itself. It is told `DECODE_TIMESTEP`, and no noise is mixed into the latents, so
    that the same latents give the same frames.
    """

    DECODE_TIMESTEP: ClassVar[float] = 0.0
    """LTXPipeline's default."""

    def __init__(self, vae: Any, *, device: torch.device) -> None:
        """`vae` is on `device`, with the statistics among its weights."""
        super().__init__(
            vae,
            device=device,
            mean=vae.latents_mean.tolist(),
            std=(vae.latents_std / vae.config.scaling_factor).tolist(),
        )
        injects = vae.config.decoder_inject_noise
        self._injects_noise = injects if isinstance(injects, bool) else any(injects)

    def _decode(self, latents: Tensor) -> Tensor:
        """[B, C, F, H, W] of the VAE's own scale -> [B, 3, T, height, width] in [-1, 1]."""
        timestep = None
        if self.module.config.timestep_conditioning:
            timestep = latents.new_full((latents.shape[0],), self.DECODE_TIMESTEP)
        # A decoder that injects noise (0.9.1) draws it from the global generator, one map for all
        # rows: the same one on every call.
        devices = [latents.device] if latents.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=self._injects_noise):
            if self._injects_noise:
                torch.manual_seed(0)
            pixels: Tensor = self.module.decode(latents, timestep, return_dict=False)[0]
        return pixels


class LtxModel(PipelineModel):
    """An LTXPipeline as a `VideoModel`.

    The pipeline's guidance is rlvid's; rescaled guidance (off by default) and the skip-layer
    guidance of Lightricks' own code are not part of it.
    """

    PIPELINE = "LTXPipeline"
    VAE = "AutoencoderKLLTXVideo"
    NATIVE: ClassVar[NativeRange] = NativeRange(
        num_frames=(None, 257), height_width=((512, 704), (480, 704), (704, 1216)), fps=25.0
    )
    """Sizes and frame rate of LTXPipeline's default and example, 704x1216 of Lightricks' README; up
    to 257 frames and 720x1280 pixels it "works best" (model card)."""
    FRAME_RATE: ClassVar[float] = 25.0
    """Frames of a second that the transformer is told, the pipeline's default."""
    MAX_SEQUENCE_LENGTH: ClassVar[int] = 128
    """Text tokens, the pipeline's default; a tokenizer's shorter `model_max_length` lowers it."""

    def __init__(
        self, pipeline: Any, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(pipeline, device=device, dtype=dtype)
        config = pipeline.transformer.config
        if (config.patch_size_t, config.patch_size) != (1, 1):
            raise ValueError(
                f"model.path: transformer: patch_size_t {config.patch_size_t}, patch_size "
                f"{config.patch_size}: expected 1 and 1; {self.PIPELINE} samples no other."
            )
        longest = pipeline.tokenizer.model_max_length
        self.max_sequence_length = min(longest, self.MAX_SEQUENCE_LENGTH)

    @classmethod
    def open_vae(cls, vae: Any, device: torch.device) -> LtxVae:
        return LtxVae(vae, device=device)

    def encode_prompt(self, text: str) -> Condition:
        """Return prompt_embeds [1, L, D] and prompt_mask [1, L], L being `max_sequence_length`."""
        embeds, mask, _, _ = self._pipeline.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.text_device,
        )
        return Condition({"prompt_embeds": embeds.float(), "prompt_mask": mask})

    def input_shapes(self, latent_shape: tuple[int, int, int, int]) -> InputShapes:
        length = self.max_sequence_length
        width = self._pipeline.transformer.config.caption_channels
        return InputShapes(
            condition={"prompt_embeds": (length, width), "prompt_mask": (length,)},
            text_tokens={"text_encoder": length},
        )

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the velocity [B, C, F, H, W] float32 at `sigma` [B]; differentiable."""
        *_, frames, height, width = latents.shape
        spatial = self._vae.scale_factor_spatial
        tokens: Tensor = self.transformer(
            hidden_states=latents.flatten(2).transpose(1, 2).to(self._dtype),
            encoder_hidden_states=condition["prompt_embeds"].to(self._dtype),
            timestep=sigma.float() * NUM_TRAIN_TIMESTEPS,
            encoder_attention_mask=condition["prompt_mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(
                self._vae.scale_factor_temporal / self.FRAME_RATE,
                spatial,
                spatial,
            ),
            return_dict=False,
        )[0]
        return tokens.float().transpose(1, 2).reshape(latents.shape)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (C, F, H, W) for a clip of that size; ValueError when it does not divide."""
        return self._vae.clip_shape(num_frames, height, width)

    def sigmas(self, num_steps: int, num_frames: int, height: int, width: int) -> tuple[float, ...]:
        """Return the num_steps + 1 noise levels of the pipeline, shifted by the clip's tokens."""
        _, *positions = self.latent_shape(num_frames, height, width)
        scheduler = self._pipeline.scheduler
        mu = token_shift(scheduler, torch.Size(positions).numel())
        return flow_match_sigmas(scheduler, linear_sigmas(num_steps), mu=mu)
