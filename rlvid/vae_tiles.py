"""Decoding and encoding in overlapping tiles, for clips whose activations do not fit.

diffusers' VAEs all cut and blend tiles, and are told how in four ways: by the stride between tiles
(Wan, HunyuanVideo, LTX, Mochi), by an overlap for height and width (CogVideoX) or for both
(HunyuanVideo-1.5), or by attributes (AutoencoderKL, of images).
"""

from __future__ import annotations

import inspect
from typing import Any


def tile_vae(vae: Any, tile: int, stride: int, *, where: str) -> None:
    """Have a VAE of diffusers go tile by tile over clips that are larger than one.

    Args:
        tile: pixels of a tile's side.
        stride: pixels from one tile to the next; what is left of a tile is blended.
        where: setting to name in errors.

    Raises:
        ValueError: the VAE has no tiles, or these do not lie on whole latent positions.
    """
    if not hasattr(vae, "enable_tiling"):
        raise ValueError(
            f"{where}: {type(vae).__name__} does not decode in tiles: expected a VAE of diffusers "
            "that does. Leave the setting out"
        )
    spatial = _compression(vae)
    if tile % spatial or stride % spatial:
        raise ValueError(
            f"{where}: expected tiles and the stride between them in multiples of {spatial} "
            f"pixels, one latent position of {type(vae).__name__}, got {tile} and {stride}"
        )
    overlap = 1.0 - stride / tile
    known = inspect.signature(vae.enable_tiling).parameters
    ways = {
        "tile_sample_min_height": tile,
        "tile_sample_min_width": tile,
        "tile_latent_min_height": tile // spatial,
        "tile_latent_min_width": tile // spatial,
        "tile_sample_stride_height": stride,
        "tile_sample_stride_width": stride,
        "tile_overlap_factor_height": overlap,
        "tile_overlap_factor_width": overlap,
        "tile_overlap_factor": overlap,
    }
    vae.enable_tiling(**{name: value for name, value in ways.items() if name in known})
    if "tile_sample_min_height" not in known:
        vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // spatial
        vae.tile_overlap_factor = overlap


def _compression(vae: Any) -> int:
    """Return the pixels that one latent position is wide."""
    ratio = getattr(vae, "spatial_compression_ratio", None)
    if ratio is None:  # images, and CogVideoX
        ratio = 2 ** (len(vae.config.block_out_channels) - 1)
    return int(ratio)
