"""A tiny random MochiPipeline."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLMochi,
    FlowMatchEulerDiscreteScheduler,
    MochiPipeline,
    MochiTransformer3DModel,
)

from rlvid.models.mochi import MochiModel
from rlvid.models.tiny_families.t5 import t5_encoder, t5_tokenizer

LATENT_CHANNELS = 12
"""MochiPipeline decodes no other number."""

TEXT_DIM = 16


def build_vae() -> AutoencoderKLMochi:
    """Return an untrained VAE: 6 times fewer frames, 8 times fewer pixels each way.

    Its group norms have 32 groups, so no level can be narrower; only the inmost level has layers.
    """
    vae = AutoencoderKLMochi(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(0, 0, 0, 0, 1),
    )
    return vae.requires_grad_(False).eval()


def build_transformer() -> MochiTransformer3DModel:
    """Return an untrained transformer.

    Its learned rotary frequencies are drawn, not zero, and its gates are twice as open as torch
    draws them, for else what attention adds would hardly be seen in the velocity.
    """
    transformer = MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=LATENT_CHANNELS,
        text_embed_dim=TEXT_DIM,
        time_embed_dim=16,
        max_sequence_length=16,
    )
    with torch.no_grad():
        transformer.pos_frequencies.normal_(0.0, 0.1)
        for name, parameter in transformer.named_parameters():
            if ".norm1.linear." in name:
                parameter.mul_(2.0)
    return transformer.eval()


def build_pipeline(*, force_zeros_for_empty_prompt: bool = False, seed: int = 0) -> MochiPipeline:
    """Return the whole untrained pipeline, with the scheduler settings of Mochi 1."""
    tokenizer = t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MochiPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
            vae=build_vae(),
            text_encoder=t5_encoder(len(tokenizer), dim=TEXT_DIM),
            tokenizer=tokenizer,
            transformer=build_transformer(),
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        )


def build_model(seed: int = 0) -> MochiModel:
    """Return the pipeline as a `VideoModel` on the CPU; clips of 13x16x32 pixels, for instance."""
    return MochiModel(build_pipeline(seed=seed), device=torch.device("cpu"))
