"""Names and shapes of the parameters of an `AutoencoderKLWan`, from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from rlvid.observability.vae_flops import VaeSize

_Named = Iterator[tuple[str, tuple[int, ...]]]


def wan_vae(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Return the parameters; None for a VAE that is built otherwise (`is_residual`, Wan 2.2's)."""
    size = VaeSize.of_config(config)
    return None if size is None else dict(_vae(size))


def _vae(size: VaeSize) -> _Named:
    yield from _encoder(size)
    moments = 2 * size.z_dim
    yield from _conv("quant_conv", moments, moments, 1, 1, 1)
    yield from _conv("post_quant_conv", size.z_dim, size.z_dim, 1, 1, 1)
    yield from _decoder(size)


def _encoder(size: VaeSize) -> _Named:
    dims = [size.encoder_dim * n for n in (1, *size.dim_mult)]
    yield from _conv("encoder.conv_in", dims[0], size.in_channels, 3, 3, 3)
    place = 0
    for (before, after), halves in zip(pairwise(dims), (*size.halves_time, None), strict=True):
        for given in (before, *(size.num_res_blocks - 1) * (after,)):
            yield from _residual(f"encoder.down_blocks.{place}", given, after)
            place += 1
        if halves is None:
            break
        yield from _conv(f"encoder.down_blocks.{place}.resample.1", after, after, 3, 3)
        if halves:
            yield from _conv(f"encoder.down_blocks.{place}.time_conv", after, after, 3, 1, 1)
        place += 1
    yield from _middle("encoder.mid_block", dims[-1])
    yield "encoder.norm_out.gamma", (dims[-1], 1, 1, 1)
    yield from _conv("encoder.conv_out", 2 * size.z_dim, dims[-1], 3, 3, 3)


def _decoder(size: VaeSize) -> _Named:
    dims = [size.decoder_dim * n for n in (size.dim_mult[-1], *reversed(size.dim_mult))]
    yield from _conv("decoder.conv_in", dims[0], size.z_dim, 3, 3, 3)
    yield from _middle("decoder.mid_block", dims[0])
    doubles_time = (*reversed(size.halves_time), None)
    for level, ((before, after), doubles) in enumerate(
        zip(pairwise(dims), doubles_time, strict=True)
    ):
        name = f"decoder.up_blocks.{level}"
        entering = before // 2 if level else before  # the convolution that resizes halves them
        for number in range(size.num_res_blocks + 1):
            given = after if number else entering
            yield from _residual(f"{name}.resnets.{number}", given, after)
        if doubles is None:
            break
        yield from _conv(f"{name}.upsamplers.0.resample.1", after // 2, after, 3, 3)
        if doubles:
            yield from _conv(f"{name}.upsamplers.0.time_conv", 2 * after, after, 3, 1, 1)
    yield "decoder.norm_out.gamma", (dims[-1], 1, 1, 1)
    yield from _conv("decoder.conv_out", size.out_channels, dims[-1], 3, 3, 3)


def _middle(name: str, dim: int) -> _Named:
    yield f"{name}.attentions.0.norm.gamma", (dim, 1, 1)
    yield from _conv(f"{name}.attentions.0.to_qkv", 3 * dim, dim, 1, 1)
    yield from _conv(f"{name}.attentions.0.proj", dim, dim, 1, 1)
    for number in range(2):
        yield from _residual(f"{name}.resnets.{number}", dim, dim)


def _residual(name: str, before: int, after: int) -> _Named:
    yield f"{name}.norm1.gamma", (before, 1, 1, 1)
    yield from _conv(f"{name}.conv1", after, before, 3, 3, 3)
    yield f"{name}.norm2.gamma", (after, 1, 1, 1)
    yield from _conv(f"{name}.conv2", after, after, 3, 3, 3)
    if before != after:
        yield from _conv(f"{name}.conv_shortcut", after, before, 1, 1, 1)


def _conv(name: str, made: int, *given: int) -> _Named:
    yield f"{name}.weight", (made, *given)
    yield f"{name}.bias", (made,)
