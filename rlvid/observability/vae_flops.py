r"""Convolution FLOPs of a Wan VAE (diffusers' AutoencoderKLWan): of encoding and decoding one clip.

Letters: F h w latent frames, height and width; P = h w; a, b channels in and out of a layer.

A convolution with k taps counts 2 k a b at each position of its output. A residual block has two
of 27 taps and, where a and b differ, one of a single tap; the middle has two such blocks around an
attention over the P positions of each frame, 2 (3 + 1) b b a position and 4 P P b a frame. Between
two levels the picture is resized by a convolution of 9 taps over each frame, and where time is
resized too by one of 3 taps, which leaves out the first frame. Norms and activations are left out.

Decoding goes by latent frame, so it holds four frames of the finest level at a time, and for each
convolution the ends of the frames before: counted (`tests.bench.activation_bytes`), 51 numbers for
each channel and position of a frame of that level, float32. Besides there is the clip so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

DECODE_NUMBERS = 51
"""Alive at once, a channel and position of a frame of the finest level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeSize:
    """The numbers that an `AutoencoderKLWan` and its FLOPs follow from."""

    encoder_dim: int
    """Channels of the finest level."""
    decoder_dim: int
    dim_mult: tuple[int, ...]
    """Factor on them at each level, finest first."""
    num_res_blocks: int
    halves_time: tuple[bool, ...]
    """Between levels, finest first; the picture is halved at each."""
    z_dim: int
    in_channels: int
    """Of the finest level; a VAE that folds patches into channels has more than 3."""
    out_channels: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> VaeSize | None:
        """Return the size in a `vae/config.json`; None for a VAE that is built otherwise."""
        if config.get("_class_name") != "AutoencoderKLWan" or config.get("is_residual"):
            return None
        if config.get("attn_scales"):
            return None
        return cls(
            encoder_dim=config["base_dim"],
            decoder_dim=config.get("decoder_base_dim") or config["base_dim"],
            dim_mult=tuple(config["dim_mult"]),
            num_res_blocks=config["num_res_blocks"],
            halves_time=tuple(config["temperal_downsample"]),
            z_dim=config["z_dim"],
            in_channels=config.get("in_channels", 3),
            out_channels=config.get("out_channels", 3),
        )


def decode_flops(size: VaeSize, latent: tuple[int, int, int]) -> int:
    """Return the FLOPs of decoding latents of (F, h, w)."""
    frames, height, width = latent
    area = height * width
    dims = [size.decoder_dim * n for n in (size.dim_mult[-1], *reversed(size.dim_mult))]
    doubles_time = (*reversed(size.halves_time), None)
    total = frames * area * (2 * size.z_dim**2 + _conv(27, size.z_dim, dims[0]))
    total += _middle(frames, area, dims[0])
    for level, ((before, after), doubles) in enumerate(
        zip(pairwise(dims), doubles_time, strict=True)
    ):
        entering = before // 2 if level else before  # the convolution that resizes halves them
        blocks = _residual(entering, after) + size.num_res_blocks * _residual(after, after)
        total += frames * area * blocks
        if doubles is None:
            continue
        if doubles:
            total += (frames - 1) * area * _conv(3, after, 2 * after)
            frames = 2 * frames - 1
        area *= 4
        total += frames * area * _conv(9, after, after // 2)
    return total + frames * area * _conv(27, dims[-1], size.out_channels)


def decode_bytes(size: VaeSize, latent: tuple[int, int, int]) -> float:
    """Return the most bytes that decoding latents of (F, h, w) holds at once, weights aside."""
    frames, height, width = latent
    positions = height * width << 2 * len(size.halves_time)
    for _ in range(sum(size.halves_time)):
        frames = 2 * frames - 1
    finest = size.decoder_dim * size.dim_mult[0]
    return 4.0 * positions * (DECODE_NUMBERS * finest + frames * size.out_channels)


def encode_flops(size: VaeSize, latent: tuple[int, int, int]) -> int:
    """Return the FLOPs of encoding a clip into latents of (F, h, w)."""
    frames, height, width = latent
    area = height * width << 2 * len(size.halves_time)
    for _ in range(sum(size.halves_time)):
        frames = 2 * frames - 1
    dims = [size.encoder_dim * n for n in (1, *size.dim_mult)]
    total = frames * area * _conv(27, size.in_channels, dims[0])
    for (before, after), halves in zip(pairwise(dims), (*size.halves_time, None), strict=True):
        blocks = _residual(before, after) + (size.num_res_blocks - 1) * _residual(after, after)
        total += frames * area * blocks
        if halves is None:
            continue
        area //= 4
        total += frames * area * _conv(9, after, after)
        if halves:
            frames = (frames + 1) // 2
            total += (frames - 1) * area * _conv(3, after, after)
    total += _middle(frames, area, dims[-1])
    moments = 2 * size.z_dim
    return total + frames * area * (_conv(27, dims[-1], moments) + 2 * moments**2)


def _conv(taps: int, before: int, after: int) -> int:
    return 2 * taps * before * after


def _residual(before: int, after: int) -> int:
    shortcut = _conv(1, before, after) if before != after else 0
    return _conv(27, before, after) + _conv(27, after, after) + shortcut


def _middle(frames: int, area: int, dim: int) -> int:
    attention = 8 * dim**2 + 4 * area * dim
    return frames * area * (2 * _residual(dim, dim) + attention)
