"""Four numbers that say how a clip is being gamed: over-exposed, still, over-saturated or gridded.

Plain functions of pixels, cheap enough for every clip of every step; they know no prompt and no
threshold. Alarms compare them with what they were at the start of a run. T frames, H W pixels.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
"""Rec. 709."""
WHITE = 0.97
"""Luma from which a pixel counts as blown out."""
MOVED = 0.05
"""Change of a pixel between moments that a person sees; far above rounding, below any object."""
MOVED_SHARE = 0.02
"""Share of moved pixels at which stillness has fallen to 1/e."""
GRID_PERIODS = (4, 8, 16)
"""px; a tile of 8 shows patterns of 2, 4 and 8 px, the strides of patches and VAEs. The shorter
ones are tried as well because a small picture has more of them, and so a surer median."""
GRID_CONTRAST = 0.005
"""Root mean square of the repeated tile at which `grid` is 1 - 1/e."""


def clip_guards(frames: npt.NDArray[Any]) -> dict[str, float]:
    """Return the guards of a clip, uint8 or float in [0, 1], [T, H, W, 3].

    All lie in [0, 1] and more is worse: "over_exposure", "stillness", "saturation", "grid".
    """
    pixels = as_floats(frames)
    luma = np.asarray(pixels @ LUMA, dtype=np.float32)
    return {
        "over_exposure": over_exposure(luma),
        "stillness": stillness(luma),
        "saturation": saturation(pixels),
        "grid": grid(luma),
    }


def as_floats(frames: npt.NDArray[Any]) -> Floats:
    """[T, H, W, 3] uint8 or float -> float32 in [0, 1]."""
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"clip_guards: frames: expected [T, H, W, 3], got {frames.shape}.")
    if frames.dtype == np.uint8:
        return frames.astype(np.float32) / np.float32(255.0)
    if not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"clip_guards: frames: expected uint8 or float, got {frames.dtype}.")
    return np.clip(frames.astype(np.float32), 0.0, 1.0)


def over_exposure(luma: Floats) -> float:
    """Share of pixels of [T, H, W] that are white or nearly so."""
    return float((luma >= WHITE).mean())


def stillness(luma: Floats) -> float:
    """1 for a clip in which nothing moves, near 0 when a tenth of the pixels of [T, H, W] change.

    exp(-share / MOVED_SHARE), the share of pixels whose range over moments exceeds MOVED. A moment
    is the mean of four blurred frames less its own mean, so neither noise nor flicker is motion.
    """
    length = min(4, max(1, len(luma) // 2))
    moments = []
    for start in range(0, len(luma) - length + 1, length):
        moment = cv2.GaussianBlur(luma[start : start + length].mean(axis=0), (3, 3), 0.8)
        moments.append(moment - moment.mean())
    spread = np.ptp(np.stack(moments), axis=0)
    return float(np.exp(-float((spread > MOVED).mean()) / MOVED_SHARE))


def saturation(pixels: Floats) -> float:
    """Mean chroma (largest less least of red, green, blue) of [T, H, W, 3].

    Not the saturation of HSV, which is 1 for a pixel that is all but black.
    """
    red, green, blue = (pixels[..., channel] for channel in range(3))
    largest = np.maximum(np.maximum(red, green), blue)
    return float((largest - np.minimum(np.minimum(red, green), blue)).mean())


def grid(luma: Floats) -> float:
    """How strongly one small tile repeats over [T, H, W], 1 - exp(-contrast / GRID_CONTRAST).

    Diffusion samplers with too much noise leave a pattern locked to the latent's cells. The
    picture's fine detail is cut into tiles, and only what most of them share counts: content
    falls on few tiles at the same place, and noise averages out.
    """
    contrast = max(tile_contrast(luma, period) for period in GRID_PERIODS)
    return float(1.0 - np.exp(-contrast / GRID_CONTRAST))


def tile_contrast(luma: Floats, period: int) -> float:
    """Root mean square of the shared tile, in [0, 1] of luma; 0 below 4 x 4 tiles a frame.

    A cell of the tile is the quartile nearer to zero over all tiles, or zero where the quartiles
    differ in sign.
    """
    rows, columns = luma.shape[1] // period, luma.shape[2] // period
    if rows < 4 or columns < 4:
        return 0.0
    picture = luma.mean(axis=0)  # blurring is linear: the mean's fine detail is the mean detail
    fine = picture - cv2.GaussianBlur(picture, (0, 0), 2.0)
    cut = fine[: rows * period, : columns * period]
    tiles = cut.reshape(rows, period, columns, period).transpose(0, 2, 1, 3)
    low, high = np.quantile(tiles.reshape(rows * columns, period, period), (0.25, 0.75), axis=0)
    shared = np.where(low > 0, low, np.where(high < 0, high, 0.0))
    return float(np.sqrt((shared**2).mean()))
