"""Builds the tiny Wan pipeline from nothing: tokenizer, text encoder, VAE, transformer, scheduler.

Every part is diffusers' or transformers' own class with random, seeded weights. The text encoder
stays as it is: an untrained encoder maps different captions to different embeddings, which is all
that the transformer needs to learn what the words mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
"""Ids 0, 1 and 2, as in T5."""

SIGMA_SHIFT = 3.0
"""sigma -> shift * sigma / (1 + (shift - 1) * sigma), Wan's value for small clips."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySize:
    """How large the parts are; the defaults are the shipped model."""

    max_sequence_length: int = 24
    """Text tokens, end mark included."""
    text_dim: int = 64
    text_layers: int = 2
    latent_channels: int = 16
    vae_dim: int = 16
    """Channels at the VAE's finest level; decoding time grows with its square."""
    num_heads: int = 4
    head_dim: int = 32
    """Rotary positions split it in three even parts, so at least 6."""
    num_layers: int = 5
    ffn_dim: int = 384


def build_tokenizer(captions: Iterable[str], max_sequence_length: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word of `captions`, in lower case.

    Words are sorted, so the vocabulary does not depend on the order of the captions.
    """
    split = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    words = {
        word
        for text in captions
        for word, _ in split.pre_tokenize_str(text.lower())
        if word.strip()
    }
    vocabulary = {word: i for i, word in enumerate((*SPECIAL_TOKENS, *sorted(words)))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_sequence_length,
    )


def build_text_encoder(vocabulary_size: int, size: TinySize) -> UMT5EncoderModel:
    """Return an untrained UMT5 encoder whose outputs have unit RMS per token.

    The relative position biases are drawn wide: at T5's own scale the heads of an untrained encoder
    average over the whole text, and "red ball, blue box" would embed like "blue ball, red box".
    """
    num_heads = 4
    config = UMT5Config(
        vocab_size=vocabulary_size,
        d_model=size.text_dim,
        d_kv=size.text_dim // num_heads,
        d_ff=2 * size.text_dim,
        num_layers=size.text_layers,
        num_heads=num_heads,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    encoder = UMT5EncoderModel(config)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "relative_attention_bias" in name:
                parameter.normal_(0.0, 2.0)
    return encoder.requires_grad_(False).eval()


def build_vae(size: TinySize) -> AutoencoderKLWan:
    """Return an untrained VAE: 4 times fewer frames, 8 times fewer pixels each way.

    Pixels are folded 2x2 into channels first (Wan 2.2's `patch_size`), so that no convolution runs
    at full resolution: that halves the decoding time of a 17x32x32 clip on one core.
    """
    return AutoencoderKLWan(
        base_dim=size.vae_dim,
        z_dim=size.latent_channels,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * size.latent_channels,
        latents_std=[1.0] * size.latent_channels,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
    )


def build_transformer(size: TinySize) -> WanTransformer3DModel:
    """Return an untrained transformer with one token per latent position."""
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=size.num_heads,
        attention_head_dim=size.head_dim,
        in_channels=size.latent_channels,
        out_channels=size.latent_channels,
        text_dim=size.text_dim,
        freq_dim=64,
        ffn_dim=size.ffn_dim,
        num_layers=size.num_layers,
        rope_max_seq_len=64,
    )


def build_pipeline(
    captions: Iterable[str], *, size: TinySize | None = None, seed: int = 0
) -> WanPipeline:
    """Return the whole untrained pipeline; the same arguments give the same weights.

    `captions` fix the vocabulary; give every caption the model is ever to read.
    """
    size = size or TinySize()
    tokenizer = build_tokenizer(captions, size.max_sequence_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanPipeline(
            tokenizer=tokenizer,
            text_encoder=build_text_encoder(len(tokenizer), size),
            vae=build_vae(size),
            transformer=build_transformer(size),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=SIGMA_SHIFT),
        )
