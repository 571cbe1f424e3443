"""Stable Diffusion 3 and 3.5 image models (arXiv:2403.03206) as videos of one frame.

The folder is StableDiffusion3Pipeline's, with all three text encoders. Timesteps are 1000 sigma and
the transformer predicts the velocity. It is the family for quick work: a clip has num_frames 1, so
latents are [B, C, 1, H, W] and videos [B, 1, 3, height, width].
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.models.input_shapes import InputShapes
from rlvid.models.native import NativeRange
from rlvid.models.pipeline_model import PipelineModel
from rlvid.models.scheduler_sigmas import flow_match_sigmas, token_shift
from rlvid.models.video_vae import VideoVae

NUM_TRAIN_TIMESTEPS = 1000
"""timestep = 1000 * sigma."""

MAX_SEQUENCE_LENGTH = 256
"""Tokens that T5 reads, StableDiffusion3Pipeline's default; a tokenizer with a shorter
`model_max_length` lowers it. CLIP reads as many as its own tokenizer says."""


class ImageVae(VideoVae):
    """diffusers' AutoencoderKL, which has no frames."""

    def _decode(self, latents: Tensor) -> Tensor:
        """[B, C, 1, H, W] of the VAE's own scale -> [B, 3, 1, height, width] in [-1, 1]."""
        return super()._decode(latents.squeeze(2)).unsqueeze(2)

    def _encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, 1, height, width] in [-1, 1] -> [B, C, 1, H, W] of the VAE's own scale."""
        return super()._encode(pixels.squeeze(2)).unsqueeze(2)


class StableDiffusion3Model(PipelineModel):
    """A StableDiffusion3Pipeline as a `VideoModel`.

    Its guidance is rlvid's, at scale 7 by default; the skip-layer guidance that Stability AI
    recommends for 3.5 Medium, off in the pipeline by default, is not offered.
    """

    PIPELINE = "StableDiffusion3Pipeline"
    PARTS = (
        *PipelineModel.PARTS,
        *("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"),
    )
    ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
    VAE = "AutoencoderKL"
    NATIVE: ClassVar[NativeRange] = NativeRange(
        num_frames=(1, 1),
        height_width=((256, 256), (512, 512), (768, 768), (1024, 1024), (1440, 1440)),
    )
    """Stages of the training of 3.5 Medium, the last with sizes mixed (its model card); 1024x1024
    is the pipeline's default."""

    def __init__(
        self, pipeline: Any, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(pipeline, device=device, dtype=dtype)
        config = pipeline.transformer.config
        self._patch_size: int = config.patch_size
        self._max_tokens: int = config.pos_embed_max_size
        self.max_sequence_length = min(pipeline.tokenizer_3.model_max_length, MAX_SEQUENCE_LENGTH)

    @classmethod
    def open_vae(cls, vae: Any, device: torch.device) -> ImageVae:
        config = vae.config
        return ImageVae(
            vae,
            device=device,
            mean=[config.shift_factor or 0.0] * config.latent_channels,
            scaling_factor=config.scaling_factor,
            scale_factor_temporal=1,
            scale_factor_spatial=2 ** (len(config.block_out_channels) - 1),
        )

    def encode_prompt(self, text: str) -> Condition:
        """Return prompt_embeds [1, L, D], CLIP's tokens before T5's, and pooled_embeds [1, P]."""
        embeds, _, pooled, _ = self._pipeline.encode_prompt(
            text,
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.text_device,
        )
        return Condition({"prompt_embeds": embeds.float(), "pooled_embeds": pooled.float()})

    def input_shapes(self, latent_shape: tuple[int, int, int, int]) -> InputShapes:
        pipeline, config = self._pipeline, self._pipeline.transformer.config
        clip, length = pipeline.tokenizer.model_max_length, self.max_sequence_length
        return InputShapes(
            condition={
                "prompt_embeds": (clip + length, config.joint_attention_dim),
                "pooled_embeds": (config.pooled_projection_dim,),
            },
            text_tokens={"text_encoder": clip, "text_encoder_2": clip, "text_encoder_3": length},
        )

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the velocity [B, C, 1, H, W] float32 at `sigma` [B]; differentiable."""
        velocity: Tensor = self.transformer(
            hidden_states=latents.squeeze(2).to(self._dtype),
            timestep=sigma.float() * NUM_TRAIN_TIMESTEPS,
            encoder_hidden_states=condition["prompt_embeds"].to(self._dtype),
            pooled_projections=condition["pooled_embeds"].to(self._dtype),
            return_dict=False,
        )[0]
        return velocity.float().unsqueeze(2)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (C, 1, H, W) for an image of that size.

        Raises:
            ValueError: there are more frames, or the image does not divide or is larger than the
                transformer has positions for.
        """
        if num_frames != 1:
            raise ValueError(f"model.num_frames: expected 1 of an image model, got {num_frames}.")
        patch = (self._patch_size, self._patch_size)
        shape = self._vae.clip_shape(num_frames, height, width, patch=patch)
        most = self._max_tokens * self._patch_size * self._vae.scale_factor_spatial
        for name, pixels in (("height", height), ("width", width)):
            if pixels > most:
                raise ValueError(
                    f"model.{name}: expected at most {most}, for which the transformer has "
                    f"positions, got {pixels}."
                )
        return shape

    def sigmas(self, num_steps: int, num_frames: int, height: int, width: int) -> tuple[float, ...]:
        """Return the num_steps + 1 noise levels of StableDiffusion3Pipeline.

        Timesteps fall evenly between the ends of the scheduler's own, which are shifted; diffusers
        shifts what is between, and the last once more.
        """
        if num_steps < 1:
            raise ValueError(f"sigmas: num_steps must be at least 1, got {num_steps}")
        _, _, latent_height, latent_width = self.latent_shape(num_frames, height, width)
        scheduler = self._pipeline.scheduler
        mu = None
        if scheduler.config.use_dynamic_shifting:
            num_tokens = (latent_height // self._patch_size) * (latent_width // self._patch_size)
            mu = token_shift(scheduler, num_tokens)
        even = torch.linspace(
            scheduler.sigma_max, scheduler.sigma_min, num_steps, dtype=torch.float64
        )
        return flow_match_sigmas(scheduler, even.tolist(), mu=mu)
