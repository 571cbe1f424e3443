"""A tiny random LTX2Pipeline, with its audio half."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaTokenizer,
    SiglipVisionConfig,
)

from rlvid.models.ltx2 import Ltx2Model
from rlvid.models.tiny_families.ltx import (
    TEXT_DIM,
    TRANSFORMER_SIZE,
    VAE_SIZE,
    build_scheduler,
    draw_statistics,
)
from rlvid.models.tiny_families.t5 import WORDS

TEXT_LAYERS = 2
MEL_BINS = 8
CONNECTOR_SIZE = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 1,
    "num_learnable_registers": 8,
}


def build_tokenizer(*, max_length: int = 32) -> GemmaTokenizer:
    """Return a tokenizer of letters, those of `WORDS`; what Gemma merges them to is left out."""
    marks = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    letters = sorted({letter for word in WORDS for letter in word})
    vocabulary = (*marks, "\N{LOWER ONE EIGHTH BLOCK}", *letters)
    return GemmaTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        model_max_length=max_length,
        add_bos_token=True,
    )


def build_text_encoder(vocabulary_size: int) -> Gemma3ForConditionalGeneration:
    """Return an untrained Gemma 3; its vision half is never asked."""
    text = Gemma3TextConfig(
        vocab_size=vocabulary_size,
        hidden_size=TEXT_DIM,
        intermediate_size=2 * TEXT_DIM,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    vision = SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(config)


def build_vae() -> AutoencoderKLLTX2Video:
    """Return an untrained VAE."""
    vae = AutoencoderKLLTX2Video(
        **VAE_SIZE,
        down_block_types=("LTX2VideoDownBlock3D", "LTX2VideoDownBlock3D"),
        decoder_inject_noise=(False, False, False),
        downsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_type=("spatiotemporal", "spatiotemporal"),
        decoder_spatial_padding_mode="zeros",
    )
    draw_statistics(vae)
    return vae.requires_grad_(False).eval()


def build_audio_vae() -> AutoencoderKLLTX2Audio:
    """Return an untrained audio VAE; packed, its latents have `base_channels` channels."""
    return AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=MEL_BINS,
    )


def build_vocoder() -> LTX2Vocoder:
    """Return an untrained vocoder of two channels."""
    return LTX2Vocoder(
        in_channels=2 * MEL_BINS,
        hidden_channels=8,
        upsample_kernel_sizes=[4],
        upsample_factors=[2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
        output_sampling_rate=16000,
    )


def build_connectors() -> LTX2TextConnectors:
    """Return the untrained layers between the text encoder and the two streams."""
    return LTX2TextConnectors(
        caption_channels=TEXT_DIM,
        text_proj_in_factor=TEXT_LAYERS + 1,
        **{
            f"{stream}_connector_{name}": size
            for stream in ("video", "audio")
            for name, size in CONNECTOR_SIZE.items()
        },
    )


def build_transformer(rope_type: str = "split") -> LTX2VideoTransformer3DModel:
    """Return an untrained transformer, whose audio stream is half as wide.

    Args:
        rope_type: "split", as the published ones have it, or "interleaved", diffusers' default.
    """
    return LTX2VideoTransformer3DModel(
        **TRANSFORMER_SIZE,
        rope_type=rope_type,
        vae_scale_factors=(4, 32, 32),
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=6,
        audio_cross_attention_dim=12,
    )


def build_pipeline(seed: int = 0, rope_type: str = "split") -> LTX2Pipeline:
    """Return the whole untrained pipeline, with the scheduler settings of LTX-Video."""
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = LTX2Pipeline(
            scheduler=build_scheduler(),
            vae=build_vae(),
            audio_vae=build_audio_vae(),
            text_encoder=build_text_encoder(len(tokenizer)),
            tokenizer=tokenizer,
            connectors=build_connectors(),
            transformer=build_transformer(rope_type).eval(),
            vocoder=build_vocoder(),
        )
    for name in Ltx2Model.ENCODERS:
        getattr(pipeline, name).requires_grad_(False).eval()
    return pipeline


def build_model(seed: int = 0, rope_type: str = "split") -> Ltx2Model:
    """Return the pipeline as a `VideoModel` on the CPU; clips of 9x32x64 pixels, for instance."""
    return Ltx2Model(build_pipeline(seed, rope_type), device=torch.device("cpu"))
