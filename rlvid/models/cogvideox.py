"""CogVideoX text-to-video models, 1.0 and 1.5 (arXiv:2408.06072), in CogVideoXPipeline's folder.

Variance-preserving, with v-prediction and zero terminal SNR; `rlvid.models.variance_preserving` has
the change of coordinates. The transformer takes frames before channels.

Frames: the VAE doubles frames two at a time and keeps the first alone, so a clip has 8 k + 1 of
them, an odd number of latent frames. CogVideoX 1.5 makes one token of two latent frames. There, as
in the pipeline, the latents have one frame more, at the front, which `decode` drops; `encode` fills
it with a copy of the first, as the authors' fine-tuning does.

Guidance is one scale; the pipeline's `use_dynamic_cfg`, off by default, is not offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.flow.sde import per_row
from rlvid.models.input_shapes import InputShapes
from rlvid.models.native import NativeRange
from rlvid.models.pipeline_model import PipelineModel
from rlvid.models.scheduler_sigmas import with_timesteps
from rlvid.models.variance_preserving import (
    VariancePreserving,
    variance_preserving_state,
    velocity_of,
)
from rlvid.models.video_vae import VideoVae

OFS = 2.0
"""What the pipeline tells CogVideoX 1.5 image-to-video with every clip."""

PROMPT_EMBEDS = "prompt_embeds"
"""[B, L, D] float32, padding included: T5 and the transformer attend to it."""


class CogVideoXVae(VideoVae):
    """diffusers' AutoencoderKLCogVideoX.

    Its `invert_scale_latents` is about the first frame of image-to-video alone.
    """

    def clip_size(self, latent_shape: Sequence[int]) -> tuple[int, int, int]:
        """Return (num_frames, height, width) that latents of shape (C, F, H, W) stand for."""
        channels, frames, *size = latent_shape
        return super().clip_size((channels, frames - (1 - frames % 2), *size))

    def _decode(self, latents: Tensor) -> Tensor:
        """An even number of latent frames has one in front that stands for no frame."""
        return super()._decode(latents[:, :, 1 - latents.shape[2] % 2 :])


class CogVideoXModel(PipelineModel):
    """A CogVideoXPipeline as a `VideoModel`."""

    PIPELINE = "CogVideoXPipeline"
    VAE = "AutoencoderKLCogVideoX"
    NATIVE: ClassVar[NativeRange] = NativeRange(
        num_frames=(9, 161), height_width=((480, 720), (768, 1360))
    )
    """The table in github.com/zai-org/CogVideo. 1.0: 8 k + 1 frames up to 49, of 480x720, 8 a
    second. 1.5: 16 k + 1 frames up to 161, of 768x1360, 16 a second."""

    def __init__(
        self, pipeline: Any, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(pipeline, device=device, dtype=dtype)
        _check_scheduler(pipeline.scheduler)
        config = pipeline.transformer.config
        self._patch_size: int = config.patch_size
        self._patch_size_t: int = config.patch_size_t or 1
        self._has_rotary: bool = config.use_rotary_positional_embeddings
        self._ofs = torch.full((1,), OFS, device=device) if config.ofs_embed_dim else None
        self.max_sequence_length: int = config.max_text_seq_length
        self._levels = VariancePreserving(pipeline.scheduler.alphas_cumprod.to(device))

    @classmethod
    def open_vae(cls, vae: Any, device: torch.device) -> CogVideoXVae:
        return CogVideoXVae(
            vae,
            device=device,
            scaling_factor=vae.config.scaling_factor,
            scale_factor_temporal=int(vae.config.temporal_compression_ratio),
            scale_factor_spatial=2 ** (len(vae.config.block_out_channels) - 1),
        )

    def encode_prompt(self, text: str) -> Condition:
        """Return prompt_embeds [1, L, D], L being `max_sequence_length` for every text.

        That is what the transformer was trained with; the pipeline's own default is 226, of 1.0.
        """
        embeds, _ = self._pipeline.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.text_device,
        )
        return Condition({PROMPT_EMBEDS: embeds.float()})

    def input_shapes(self, latent_shape: tuple[int, int, int, int]) -> InputShapes:
        length = self.max_sequence_length
        width = self._pipeline.transformer.config.text_embed_dim
        return InputShapes(
            condition={PROMPT_EMBEDS: (length, width)}, text_tokens={"text_encoder": length}
        )

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the velocity [B, C, F, H, W] float32 at `sigma` [B]; differentiable."""
        level = per_row(sigma, latents)
        state = self._shown(variance_preserving_state(latents, level), condition)
        v: Tensor = self.transformer(
            hidden_states=state.transpose(1, 2).to(self._dtype),
            encoder_hidden_states=condition[PROMPT_EMBEDS].to(self._dtype),
            timestep=self._levels.timestep(sigma),
            ofs=self._ofs,
            image_rotary_emb=self._rotary_embedding(*latents.shape[2:]),
            return_dict=False,
        )[0]
        return velocity_of(v.float().transpose(1, 2), latents, level)

    def sigmas(self, num_steps: int, num_frames: int, height: int, width: int) -> tuple[float, ...]:
        """Return the num_steps + 1 levels of the pipeline's DDIM timesteps, from 1 down to 0.

        diffusers' DDIM takes a step of num_train_timesteps // num_steps down wherever the next
        timestep is; the two agree where num_steps divides the number of training timesteps. A
        folder with CogVideoXDPMScheduler has the same timesteps.
        """
        timesteps = with_timesteps(self._pipeline.scheduler, num_steps).timesteps
        return (*self._levels.sigmas[timesteps].tolist(), 0.0)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (C, F, H, W) for a clip of that size; ValueError when it does not divide."""
        patch = (self._patch_size, self._patch_size)
        channels, frames, *size = self._vae.clip_shape(num_frames, height, width, patch=patch)
        if frames % 2 == 0:
            unit = 2 * self._vae.scale_factor_temporal
            raise ValueError(
                f"model.num_frames: expected a multiple of {unit} plus 1, got {num_frames}. "
                f"Take {1 + (num_frames - 1) // unit * unit}."
            )
        return channels, frames + self._num_padding(frames), size[0], size[1]

    def encode(self, videos: Tensor) -> Tensor:
        """[B, T, 3, height, width] in [0, 1] -> latents [B, C, F, H, W] float32, the mode."""
        latents = super().encode(videos)
        first = latents[:, :, :1].expand(-1, -1, self._num_padding(latents.shape[2]), -1, -1)
        return torch.cat([first, latents], dim=2)

    def _shown(self, state: Tensor, condition: Condition) -> Tensor:
        """Return what the transformer sees of x_t [B, C, F, H, W], channels of its own included."""
        return state

    def _num_padding(self, frames: int) -> int:
        """Return how many latent frames come before the first; `frames` is odd."""
        return -frames % self._patch_size_t

    def _rotary_embedding(self, frames: int, height: int, width: int) -> Any:
        """Return the pipeline's (cos, sin) for latents of that size; None without (the 2B)."""
        if not self._has_rotary:
            return None
        scale = self._vae.scale_factor_spatial
        return self._pipeline._prepare_rotary_positional_embeddings(
            height * scale, width * scale, frames, self.device
        )


def _check_scheduler(scheduler: Any) -> None:
    """Raise ValueError unless the scheduler says what CogVideoX was trained with."""
    for name, expected in (("prediction_type", "v_prediction"), ("set_alpha_to_one", True)):
        value = scheduler.config.get(name)
        if value != expected:
            raise ValueError(
                f"model.path: scheduler/scheduler_config.json has {name} {value!r}: expected "
                f"{expected!r}, as every CogVideoX. Copy the folder again."
            )
