r"""Sizes of Wan transformers and the matrix-product FLOPs of one forward and one trained forward.

Letters: N video tokens of a clip, L text tokens, d width (heads * head size), f width of the MLP,
t width of the text encoder, q width of the sinusoidal time embedding, p numbers in a patch
(channels * patch volume). A product of [m, k] and [k, n] counts 2 m k n. Per row (one latent, one
guidance branch) and per layer:

    linear      2 N d (4 d + 2 d + 2 f)    self-attention q, k, v, out; cross-attention q, out; MLP
    text        2 L d (2 d)                cross-attention k, v
    attention   4 N N d + 4 N L d          scores and weighted sum of self- and cross-attention

and once per row

    entry       2 N p d + 2 L (t d + d d) + 2 (q d + d d + 6 d d)    patches, text, time
    head        2 N d p

Norms, rotary positions, softmax and the LoRA matrices are left out (a LoRA of rank 16 adds less
than one percent at the 1.3B size).

A trained forward with activation checkpointing and a frozen base runs each layer forward twice and
backward once: a frozen weight takes one more product (the gradient of its input, none of its own),
an attention product two. The text below the cross-attention needs no gradient. Hence

    3 linear + 2 text + 4 attention + entry + 2 head

These are the FLOPs the machine is asked for, the second forward included; the gradient of the
first layer's input, which nobody asks for, is counted too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WanSize:
    """The numbers that a `WanTransformer3DModel` and its FLOPs follow from."""

    name: str
    num_heads: int
    head_dim: int
    num_layers: int
    ffn_dim: int
    text_dim: int
    text_tokens: int
    freq_dim: int
    channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def patch_numbers(self) -> int:
        return self.channels * math.prod(self.patch_size)


WAN_1_3B = WanSize(
    name="wan2.1-t2v-1.3b",
    num_heads=12,
    head_dim=128,
    num_layers=30,
    ffn_dim=8960,
    text_dim=4096,
    text_tokens=512,
    freq_dim=256,
)
"""Wan2.1-T2V-1.3B as diffusers' conversion script configures it; 512 is WanPipeline's text length.
What is not here (cross_attn_norm, qk_norm, eps, rope_max_seq_len) is the class's default there."""

TINY = WanSize(
    name="tiny",
    num_heads=2,
    head_dim=12,
    num_layers=2,
    ffn_dim=32,
    text_dim=16,
    text_tokens=8,
    freq_dim=32,
)
"""Exercises the script; its figures say nothing about a real model."""

SIZES = {"1.3b": WAN_1_3B, "tiny": TINY}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFlops:
    """FLOPs of one forward of one row, all layers together; parts as in the module docstring."""

    linear: int
    text: int
    attention: int
    entry: int
    head: int

    @property
    def forward(self) -> int:
        return self.linear + self.text + self.attention + self.entry + self.head

    @property
    def trained(self) -> int:
        """Forward, second forward of the layers, backward; base frozen."""
        layers = 3 * self.linear + 2 * self.text + 4 * self.attention
        return layers + self.entry + 2 * self.head


def latent_shape(
    size: WanSize, *, num_frames: int, height: int, width: int
) -> tuple[int, int, int, int]:
    """Return (C, F, H, W) behind Wan's VAE: 4 times fewer frames but the first, 8 fewer pixels.

    Raises:
        ValueError: the clip does not divide.
    """
    _, patch_height, patch_width = size.patch_size
    if (num_frames - 1) % 4 or height % (8 * patch_height) or width % (8 * patch_width):
        raise ValueError(
            f"bench: clip {num_frames} x {height} x {width}: expected a multiple of 4 plus 1 "
            f"frames, and multiples of {8 * patch_height} and {8 * patch_width} pixels"
        )
    return size.channels, (num_frames - 1) // 4 + 1, height // 8, width // 8


def count_tokens(size: WanSize, shape: tuple[int, int, int, int]) -> int:
    """Return N of latents (C, F, H, W)."""
    return math.prod(n // p for n, p in zip(shape[1:], size.patch_size, strict=True))


def row_flops(size: WanSize, tokens: int) -> RowFlops:
    """Return the FLOPs of a row with `tokens` video tokens; formula in the module docstring."""
    width, text = size.width, size.text_tokens
    return RowFlops(
        linear=size.num_layers * 2 * tokens * width * (6 * width + 2 * size.ffn_dim),
        text=size.num_layers * 4 * text * width * width,
        attention=size.num_layers * 4 * tokens * width * (tokens + text),
        entry=2 * tokens * size.patch_numbers * width
        + 2 * text * width * (size.text_dim + width)
        + 2 * width * (size.freq_dim + 7 * width),
        head=2 * tokens * width * size.patch_numbers,
    )
