"""The size of the tiny CLIP text encoders, which several families read their prompts with."""

from __future__ import annotations

from transformers import CLIPTextConfig, CLIPTokenizer


def clip_config(tokenizer: CLIPTokenizer, *, dim: int) -> CLIPTextConfig:
    """Return the sizes of an encoder of two layers that `tokenizer` feeds.

    Weights are drawn ten times as wide as CLIP's own, so that other words give other states.
    """
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=dim,
        intermediate_size=dim,
        projection_dim=dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        initializer_factor=10.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
