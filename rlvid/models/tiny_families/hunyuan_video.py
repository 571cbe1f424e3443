"""A tiny random HunyuanVideoPipeline."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from transformers import CLIPTextModel, LlamaConfig, LlamaModel

from rlvid.models.hunyuan_video import HunyuanVideoModel
from rlvid.models.tiny_families.clip import clip_config
from rlvid.models.tiny_families.tokenizers import clip_tokenizer, llama_tokenizer

LATENT_CHANNELS = 4
TEXT_DIM = 16
TEXT_SIZE: dict[str, Any] = {
    "hidden_size": TEXT_DIM,
    "intermediate_size": TEXT_DIM,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
"""Of the language model, that of 1.5 too; the states behind its first layer are the prompt's."""
TRANSFORMER_SIZE: dict[str, Any] = {
    "out_channels": LATENT_CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": TEXT_DIM,
    "rope_axes_dim": (4, 4, 4),
}
"""Of 1.5 too."""
PROMPT_LENGTH = 16
"""Tokens of the prompt; the template is some 95 more."""


def build_text_encoder(vocabulary_size: int, pad_token_id: int) -> LlamaModel:
    """Return an untrained Llama."""
    config = LlamaConfig(vocab_size=vocabulary_size, pad_token_id=pad_token_id, **TEXT_SIZE)
    return LlamaModel(config).requires_grad_(False).eval()


def build_vae() -> AutoencoderKLHunyuanVideo:
    """Return an untrained VAE: 4 times fewer frames, 4 times fewer pixels each way."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=LATENT_CHANNELS,
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(4, 4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        spatial_compression_ratio=4,
    )


def build_transformer() -> HunyuanVideoTransformer3DModel:
    """Return an untrained transformer with one block of either kind, told a guidance scale."""
    return HunyuanVideoTransformer3DModel(
        **TRANSFORMER_SIZE,
        in_channels=LATENT_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        pooled_projection_dim=TEXT_DIM,
    )


def build_pipeline(*, seed: int = 0) -> HunyuanVideoPipeline:
    """Return the whole untrained pipeline, with the scheduler settings of HunyuanVideo."""
    template = DEFAULT_PROMPT_TEMPLATE
    tokenizer = llama_tokenizer(
        template["template"], max_length=template["crop_start"] + PROMPT_LENGTH
    )
    tokenizer_2 = clip_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HunyuanVideoPipeline(
            text_encoder=build_text_encoder(len(tokenizer), tokenizer.pad_token_id),
            tokenizer=tokenizer,
            transformer=build_transformer().eval(),
            vae=build_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            text_encoder_2=CLIPTextModel(clip_config(tokenizer_2, dim=TEXT_DIM))
            .requires_grad_(False)
            .eval(),
            tokenizer_2=tokenizer_2,
        )


def build_model(seed: int = 0) -> HunyuanVideoModel:
    """Return a random model; clips of 9x16x16 pixels are [4, 3, 4, 4] latents, 12 tokens."""
    return HunyuanVideoModel(build_pipeline(seed=seed), device=torch.device("cpu"))
