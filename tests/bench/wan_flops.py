"""Sizes of Wan transformers for the benchmark; the FLOP formula is rlvid.observability.flops."""

from __future__ import annotations

from dataclasses import replace

from rlvid.observability.flops import RowFlops, WanSize, count_tokens, row_flops

__all__ = [
    "SIZES",
    "TINY",
    "WAN_14B",
    "WAN_1_3B",
    "RowFlops",
    "WanSize",
    "count_tokens",
    "latent_shape",
    "row_flops",
]

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

WAN_14B = replace(WAN_1_3B, name="wan2.1-t2v-14b", num_heads=40, num_layers=40, ffn_dim=13824)

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

SIZES = {"1.3b": WAN_1_3B, "14b": WAN_14B, "tiny": TINY}


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
