"""Bytes of what is alive beside weights and optimiser while clips are denoised or learned from.

Letters: d channels of a token, f the widest layer of a block (of its MLP), b bytes a number, L
layers. For each token of each row:

    denoise    b (4.3 d + 2 f), in bfloat16 at least 23 d
                                input, norm, what attention left and both sides of the activation
                                function, or, with a narrow MLP, rotary positions in float32
    learn      L (K_d d + K_f f) + 2 b f, kept of every layer, and one layer's backward
               L b d + K_d d + K_f f + 2 b f with activation checkpointing

where a layer keeps, in bytes,

                       K_d    K_f
    float32   LoRA    56.5      4
              full    88.3      8
    bfloat16  LoRA    60.6      2
              full    68.3      4

The same at every ZeRO stage: at stage 3 `rlvid.learners.zero_linear` lets go of weights.

Norms and modulation are computed in float32, so bfloat16 saves less than half. A token of the text,
which every layer's cross-attention reads, counts as a quarter of the video's.

All of this is counted, on Wan's blocks, by `python -m tests.bench.activation_bytes`, and a test
holds the formulas to 15 % of the count. Other families' blocks have the same parts and are taken as
equal. A LoRA on the MLP as well keeps more: 2 b f a layer.
"""

from __future__ import annotations

from rlvid.config import LearnerConfig, Recipe
from rlvid.launch.model_size import ModelSize

KEPT = {
    ("float32", "lora"): (56.5, 4.0),
    ("float32", "full"): (88.3, 8.0),
    ("bfloat16", "lora"): (60.6, 2.0),
    ("bfloat16", "full"): (68.3, 4.0),
}
"""Dtype and mode to K_d and K_f."""
TEXT_SHARE = 0.25
"""Of a video token that a text token takes."""
ROTARY_BYTES = {"float32": 0.0, "bfloat16": 23.0}
"""Of a token and channel while rotary positions are applied; in float32 never the most."""


def bytes_of(recipe: Recipe) -> int:
    """Return bytes a number of the transformer's dtype."""
    return 2 if recipe.model.dtype == "bfloat16" else 4


def denoising_bytes(recipe: Recipe, size: ModelSize, rows: int, *, ranks: int = 1) -> float:
    """Return the most that a forward of so many rows holds without a gradient.

    Args:
        ranks: share the tokens.
    """
    mlp = bytes_of(recipe) * (4.3 * size.width + 2 * size.inner_width)
    rotary = ROTARY_BYTES[recipe.model.dtype] * size.width
    return rows * size.tokens / ranks * max(mlp, rotary)


def activation_bytes(recipe: Recipe, size: ModelSize, learner: LearnerConfig, rows: int) -> float:
    """Return the most that a rank holds of a forward of so many rows and its backward."""
    per_channel, per_inner = KEPT[recipe.model.dtype, learner.mode]
    layer = per_channel * size.width + per_inner * size.inner_width
    width = bytes_of(recipe)
    if learner.activation_checkpointing:
        kept = size.num_layers * width * size.width + layer
    else:
        kept = size.num_layers * layer
    tokens = size.tokens + TEXT_SHARE * size.text_tokens
    return rows * tokens / learner.sequence_parallel * (kept + 2 * width * size.inner_width)
