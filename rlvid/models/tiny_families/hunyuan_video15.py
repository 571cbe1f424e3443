"""Tiny random pipelines of HunyuanVideo-1.5, from text and from text and a first frame."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from rlvid.models.hunyuan_video15 import HunyuanVideo15Model
from rlvid.models.hunyuan_video15_i2v import HunyuanVideo15ImageModel
from rlvid.models.tiny_families.hunyuan_video import LATENT_CHANNELS, TEXT_SIZE, TRANSFORMER_SIZE
from rlvid.models.tiny_families.t5 import t5_encoder
from rlvid.models.tiny_families.tokenizers import qwen2_tokenizer

GLYPH_DIM = 16
IMAGE_DIM = 8
PROMPT_LENGTH = 16
"""Tokens of the prompt; those of the system message are 108 more."""
GLYPH_LENGTH = 24
"""Bytes of what stands in quotation marks, 'Text "..."' around it included."""


def build_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLTextModel:
    """Return an untrained Qwen."""
    config = Qwen2_5_VLTextConfig(
        **TEXT_SIZE,
        vocab_size=len(tokenizer),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
        },
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2_5_VLTextModel(config).requires_grad_(False).eval()


def build_vae() -> AutoencoderKLHunyuanVideo15:
    """Return an untrained VAE: 4 times fewer frames, 8 times fewer pixels each way."""
    return AutoencoderKLHunyuanVideo15(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        spatial_compression_ratio=8,
    )


def build_transformer(*, task_type: str = "t2v") -> HunyuanVideo15Transformer3DModel:
    """Return an untrained transformer of two blocks.

    Four million of its parameters project the glyphs, through 2048 channels whatever its size.
    """
    return HunyuanVideo15Transformer3DModel(
        **TRANSFORMER_SIZE,
        in_channels=2 * LATENT_CHANNELS + 1,
        num_layers=2,
        text_embed_2_dim=GLYPH_DIM,
        image_embed_dim=IMAGE_DIM,
        target_size=16,
        task_type=task_type,
    )


def build_image_encoder() -> SiglipVisionModel:
    """Return an untrained encoder of pictures of 16 pixels in 4 patches."""
    config = SiglipVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=IMAGE_DIM,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return SiglipVisionModel(config).requires_grad_(False).eval()


def build_pipeline(*, seed: int = 0) -> HunyuanVideo15Pipeline:
    """Return the whole untrained text-to-video pipeline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HunyuanVideo15Pipeline(**_parts(), transformer=build_transformer().eval())


def build_image_pipeline(*, seed: int = 0) -> HunyuanVideo15ImageToVideoPipeline:
    """Return the whole untrained image-to-video pipeline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HunyuanVideo15ImageToVideoPipeline(
            **_parts(),
            transformer=build_transformer(task_type="i2v").eval(),
            image_encoder=build_image_encoder(),
            feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
        )


def build_model(seed: int = 0) -> HunyuanVideo15Model:
    """Return a random model; clips of 9x16x16 pixels are [4, 3, 2, 2] latents, 12 tokens."""
    return HunyuanVideo15Model(build_pipeline(seed=seed), device=torch.device("cpu"))


def build_image_model(seed: int = 0) -> HunyuanVideo15ImageModel:
    """Return the one that needs a first frame."""
    return HunyuanVideo15ImageModel(build_image_pipeline(seed=seed), device=torch.device("cpu"))


def _parts() -> dict[str, Any]:
    """Return what both pipelines have, with the scheduler settings of 480p."""
    encode = inspect.signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters
    tokenizer = qwen2_tokenizer(
        encode["system_message"].default, max_length=encode["crop_start"].default + PROMPT_LENGTH
    )
    tokenizer_2 = ByT5Tokenizer(model_max_length=GLYPH_LENGTH)
    return {
        "text_encoder": build_text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "vae": build_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "text_encoder_2": t5_encoder(len(tokenizer_2), dim=GLYPH_DIM),
        "tokenizer_2": tokenizer_2,
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }
