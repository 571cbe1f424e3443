"""A tiny random Cosmos-Predict 2.5: about 100 thousand parameters."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLWan,
    Cosmos2_5_PredictBasePipeline,
    CosmosTransformer3DModel,
    UniPCMultistepScheduler,
)

from rlvid.models.cosmos import CosmosModel, GuardrailNotRun
from rlvid.models.tiny.vlm_build import VlmSize, build_vlm, build_vlm_tokenizer
from rlvid.models.tiny_families.t5 import WORDS

MAX_SEQUENCE_LENGTH = 48
SYSTEM_MESSAGE = "You are a helpful assistant who will provide prompts to an image generator."
"""What the pipeline begins every chat with; known words keep it short."""


def build_pipeline(*, seed: int = 0) -> Cosmos2_5_PredictBasePipeline:
    """Return a pipeline whose clips are 4 times fewer latent frames and 8 times fewer pixels."""
    tokenizer = build_vlm_tokenizer([SYSTEM_MESSAGE, *(f" {word}" for word in WORDS), *WORDS])
    tokenizer.model_max_length = MAX_SEQUENCE_LENGTH
    size = VlmSize(
        vision_dim=16, vision_depth=1, vision_ffn=16, text_dim=32, text_layers=2, text_ffn=32,
        head_dim=16, num_key_value_heads=1,
    )  # fmt: skip
    encoder = build_vlm(tokenizer, size=size, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = CosmosTransformer3DModel(
            in_channels=5,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            mlp_ratio=2.0,
            text_embed_dim=16,
            adaln_lora_dim=8,
            max_size=(16, 16, 16),
            patch_size=(1, 2, 2),
            rope_scale=(1.0, 3.0, 3.0),
            extra_pos_embed_type=None,
            use_crossattn_projection=True,
            crossattn_proj_in_channels=size.text_layers * size.text_dim,
            encoder_hidden_states_channels=16,
        )
        vae = AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            # Powers of 2: the pipeline divides by their reciprocals; that rounds as a product.
            latents_std=[0.5, 2.0, 1.0, 0.5],
        )
    # The settings of diffusers' scripts/convert_cosmos_to_diffusers.py.
    scheduler = UniPCMultistepScheduler(
        use_karras_sigmas=True,
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        sigma_max=200.0,
        sigma_min=0.01,
    )
    return Cosmos2_5_PredictBasePipeline(
        text_encoder=encoder.requires_grad_(False).eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        vae=vae,
        scheduler=scheduler,
        safety_checker=GuardrailNotRun(),
    )


def build_model(seed: int = 0) -> CosmosModel:
    """Return the tiny adapter; clips of 9x32x32 pixels are [4, 3, 4, 4] latents."""
    return CosmosModel(build_pipeline(seed=seed), device=torch.device("cpu"))
