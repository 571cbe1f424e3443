"""A tiny random LTXPipeline."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)

from rlvid.models.ltx import LtxModel
from rlvid.models.tiny_families.t5 import t5_encoder, t5_tokenizer

LATENT_CHANNELS = 4
TEXT_DIM = 16


def build_vae(*, is_timestep_conditioned: bool = False) -> AutoencoderKLLTXVideo:
    """Return an untrained VAE: 4 times fewer frames, 32 times fewer pixels each way.

    LTXPipeline takes only multiples of 32 pixels, whatever its VAE. With `is_timestep_conditioned`
    it is told a noise level and injects noise, as LTX-Video 0.9.1 does.
    """
    vae = AutoencoderKLLTXVideo(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D", "LTXVideoDownBlock3D"),
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(is_timestep_conditioned, False, False),
        downsample_type=("conv", "conv"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        timestep_conditioning=is_timestep_conditioned,
        patch_size=8,
        patch_size_t=1,
        scaling_factor=1.0,
    )
    vae.latents_mean.uniform_(-1.0, 1.0)
    vae.latents_std.uniform_(0.5, 2.0)
    return vae.requires_grad_(False).eval()


def build_pipeline(*, is_timestep_conditioned: bool = False, seed: int = 0) -> LTXPipeline:
    """Return the whole untrained pipeline, with the scheduler settings of LTX-Video."""
    tokenizer = t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LTXPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_image_seq_len=1024,
                max_image_seq_len=4096,
                base_shift=0.95,
                max_shift=2.05,
                shift_terminal=0.1,
            ),
            vae=build_vae(is_timestep_conditioned=is_timestep_conditioned),
            text_encoder=t5_encoder(len(tokenizer), dim=TEXT_DIM),
            tokenizer=tokenizer,
            transformer=LTXVideoTransformer3DModel(
                in_channels=LATENT_CHANNELS,
                out_channels=LATENT_CHANNELS,
                num_attention_heads=2,
                attention_head_dim=12,
                cross_attention_dim=24,
                num_layers=2,
                caption_channels=TEXT_DIM,
            ).eval(),
        )


def build_model(seed: int = 0) -> LtxModel:
    """Return the pipeline as a `VideoModel` on the CPU; clips of 9x32x64 pixels, for instance."""
    return LtxModel(build_pipeline(seed=seed), device=torch.device("cpu"))
