"""A tiny random LTXPipeline."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from torch import nn

from rlvid.models.ltx import LtxModel
from rlvid.models.tiny_families.t5 import t5_encoder, t5_tokenizer

LATENT_CHANNELS = 4
TEXT_DIM = 16
TRANSFORMER_SIZE: dict[str, Any] = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "num_layers": 2,
    "caption_channels": TEXT_DIM,
}
"""Of LTX-2's video stream too."""
VAE_SIZE: dict[str, Any] = {
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "layers_per_block": (1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1),
    "spatio_temporal_scaling": (True, True),
    "decoder_spatio_temporal_scaling": (True, True),
    "upsample_residual": (False, False),
    "upsample_factor": (1, 1),
    "patch_size": 8,
}
"""Of both: 4 times fewer frames, 32 times fewer pixels each way; LTXPipeline takes only multiples
of 32 pixels, whatever its VAE."""


def build_vae(*, is_timestep_conditioned: bool = False) -> AutoencoderKLLTXVideo:
    """Return an untrained VAE.

    With `is_timestep_conditioned` it is told a noise level and injects noise, as LTX-Video 0.9.1
    does.
    """
    vae = AutoencoderKLLTXVideo(
        **VAE_SIZE,
        down_block_types=("LTXVideoDownBlock3D", "LTXVideoDownBlock3D"),
        decoder_inject_noise=(is_timestep_conditioned, False, False),
        downsample_type=("conv", "conv"),
        timestep_conditioning=is_timestep_conditioned,
        patch_size_t=1,
        scaling_factor=1.0,
    )
    draw_statistics(vae)
    return vae.requires_grad_(False).eval()


def draw_statistics(vae: nn.Module) -> None:
    """Draw those of the latents, which both have among their weights."""
    vae.get_buffer("latents_mean").uniform_(-1.0, 1.0)
    vae.get_buffer("latents_std").uniform_(0.5, 2.0)


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Return a scheduler with the settings of LTX-Video."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        base_shift=0.95,
        max_shift=2.05,
        shift_terminal=0.1,
    )


def build_pipeline(*, is_timestep_conditioned: bool = False, seed: int = 0) -> LTXPipeline:
    """Return the whole untrained pipeline."""
    tokenizer = t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LTXPipeline(
            scheduler=build_scheduler(),
            vae=build_vae(is_timestep_conditioned=is_timestep_conditioned),
            text_encoder=t5_encoder(len(tokenizer), dim=TEXT_DIM),
            tokenizer=tokenizer,
            transformer=LTXVideoTransformer3DModel(**TRANSFORMER_SIZE).eval(),
        )


def build_model(seed: int = 0) -> LtxModel:
    """Return the pipeline as a `VideoModel` on the CPU; clips of 9x32x64 pixels, for instance."""
    return LtxModel(build_pipeline(seed=seed), device=torch.device("cpu"))
