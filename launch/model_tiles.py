"""What a VAE that goes by tiles (`model.vae_tile`) adds to what it does of one tile."""

from __future__ import annotations

from rlvid.config import ModelConfig


def one_tile(model: ModelConfig) -> tuple[ModelConfig, float]:
    """Return the model with the clip of one tile, and how many of them all tiles are.

    Tiles at the lower and right edge are smaller, and count by their area. A clip no larger than a
    tile is whole, once.
    """
    tile = model.vae_tile
    if tile is None or max(model.height, model.width) <= tile:
        return model, 1.0
    height, width = min(tile, model.height), min(tile, model.width)
    area = _covered(model.height, tile) * _covered(model.width, tile)
    part = model.model_copy(update={"height": height, "width": width, "vae_tile": None})
    return part, area / (height * width)


def tiles_bytes(model: ModelConfig) -> float:
    """Return the bytes of all tiles' frames, float32, held until they are blended; 0 of one."""
    tile, times = one_tile(model)
    if tile is model:
        return 0.0
    return 4.0 * 3 * tile.num_frames * tile.height * tile.width * times


def _covered(side: int, tile: int) -> int:
    """Return the pixels of all tiles along a side."""
    return sum(min(tile, side - start) for start in range(0, side, tile * 3 // 4))
