"""A tiny T5 tokenizer and encoder, which several families read their prompts with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import T5Config, T5EncoderModel, T5Tokenizer

WORDS = ("a", "ball", "blue", "box", "falls", "left", "red", "right", "stays", "still", "the", "to")
"""Words that the tiny families know; any other is the unknown token."""


def t5_tokenizer(words: Iterable[str] = WORDS, *, max_length: int = 16) -> T5Tokenizer:
    """Return a tokenizer with one token for each word; ids 0, 1 and 2 are those of T5."""
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary = [*marks, *((f"\N{LOWER ONE EIGHTH BLOCK}{word}", -1.0) for word in words)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=max_length)


def t5_encoder(vocabulary_size: int, *, dim: int = 16) -> T5EncoderModel:
    """Return an untrained encoder of one layer.

    The relative position biases are drawn wide: at T5's own scale the heads of an untrained encoder
    average over the whole text, and the order of words would not matter.
    """
    config = T5Config(
        vocab_size=vocabulary_size,
        d_model=dim,
        d_kv=dim // 2,
        d_ff=2 * dim,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    encoder = T5EncoderModel(config)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "relative_attention_bias" in name:
                parameter.normal_(0.0, 2.0)
    return encoder.requires_grad_(False).eval()
