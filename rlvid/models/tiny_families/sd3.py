"""A tiny random StableDiffusion3Pipeline."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModelWithProjection

from rlvid.models.sd3 import StableDiffusion3Model
from rlvid.models.tiny_families.clip import clip_config
from rlvid.models.tiny_families.t5 import t5_encoder, t5_tokenizer
from rlvid.models.tiny_families.tokenizers import clip_tokenizer

LATENT_CHANNELS = 4
CLIP_DIM = 8
TEXT_DIM = 24
"""Wider than both CLIP encoders together, so that their states are padded, as in the real ones."""


def build_vae() -> AutoencoderKL:
    """Return an untrained VAE: 4 times fewer pixels each way."""
    return AutoencoderKL(
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    )


def build_transformer() -> SD3Transformer2DModel:
    """Return an untrained transformer of two blocks, the first with the dual attention of 3.5."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=TEXT_DIM,
        caption_projection_dim=24,
        pooled_projection_dim=2 * CLIP_DIM,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def build_pipeline(*, seed: int = 0) -> StableDiffusion3Pipeline:
    """Return the whole untrained pipeline, with the scheduler settings of SD3.5."""
    tokenizer, tokenizer_2, tokenizer_3 = clip_tokenizer(), clip_tokenizer(), t5_tokenizer()
    config = clip_config(tokenizer, dim=CLIP_DIM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return StableDiffusion3Pipeline(
            transformer=build_transformer().eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=build_vae(),
            text_encoder=CLIPTextModelWithProjection(config).requires_grad_(False).eval(),
            tokenizer=tokenizer,
            text_encoder_2=CLIPTextModelWithProjection(config).requires_grad_(False).eval(),
            tokenizer_2=tokenizer_2,
            text_encoder_3=t5_encoder(len(tokenizer_3), dim=TEXT_DIM),
            tokenizer_3=tokenizer_3,
        )


def build_model(seed: int = 0) -> StableDiffusion3Model:
    """Return a random model; images of 16x16 pixels are [4, 1, 4, 4] latents, 4 tokens."""
    return StableDiffusion3Model(build_pipeline(seed=seed), device=torch.device("cpu"))
