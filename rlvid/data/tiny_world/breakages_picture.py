"""Breakages of the picture: light, colour, sharpness, patterns and small unrest. T frames, H W.

Each takes finished frames, uint8 [T, H, W, 3], and returns new ones of the same shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Rng = np.random.Generator

LUMA = np.array([0.2126, 0.7152, 0.0722])
"""Rec. 709."""


def _bytes(values: npt.NDArray[np.floating[Any]]) -> Frames:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)


def over_expose(frames: Frames, rng: Rng) -> Frames:
    """Turn the light up by 30 to 70 %, so that what is pale becomes white."""
    return _bytes(frames * rng.uniform(1.3, 1.7))


def wash_out(frames: Frames, rng: Rng) -> Frames:
    """Draw all pixels towards a pale grey and keep a quarter to two fifths of the contrast."""
    keep = rng.uniform(0.25, 0.4)
    return _bytes(keep * frames + (1.0 - keep) * rng.uniform(170.0, 215.0))


def over_saturate(frames: Frames, rng: Rng) -> Frames:
    """Push every colour 2.5 to 4 times as far from grey."""
    grey = (frames @ LUMA)[..., None]
    return _bytes(grey + rng.uniform(2.5, 4.0) * (frames - grey))


def hold_still(frames: Frames, rng: Rng) -> Frames:
    """Show one frame all the time."""
    return np.repeat(frames[int(rng.integers(len(frames)))][None], len(frames), axis=0)


def add_grid(frames: Frames, rng: Rng) -> Frames:
    """Add a steady pattern that repeats every 2, 4 or 8 px: lines or cells of their own shade."""
    _, height, width, _ = frames.shape
    period = int(rng.choice((2, 4, 8)))
    strength = rng.uniform(8.0, 16.0)
    rows, columns = np.mgrid[0:height, 0:width]
    if rng.random() < 0.5:
        tile = ((rows % period == 0) | (columns % period == 0)).astype(np.float64)
    else:
        tile = rng.choice((-1.0, 1.0), size=(period, period))[rows % period, columns % period]
        # A tile that came out flat is no pattern.
        tile = tile - tile.mean() if np.ptp(tile) > 0 else (rows + columns) % 2 - 0.5
    return _bytes(frames + strength * tile[None, :, :, None])


def make_blocky(frames: Frames, rng: Rng) -> Frames:
    """Give square blocks of an eighth of the height mostly their mean colour, as bad codecs do."""
    _, height, width, _ = frames.shape
    side = max(2, height // 8)
    keep = rng.uniform(0.1, 0.3)
    blocks = np.empty(frames.shape)
    for top in range(0, height, side):
        for left in range(0, width, side):
            here = np.s_[:, top : top + side, left : left + side]
            blocks[here] = frames[here].mean(axis=(1, 2), keepdims=True)
    return _bytes(keep * frames + (1.0 - keep) * blocks)


def blur(frames: Frames, rng: Rng) -> Frames:
    """Smooth every frame with a Gaussian of 4 to 6 % of the height."""
    sigma = rng.uniform(0.04, 0.06) * frames.shape[1]
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    pad = ((0, 0), (reach, reach), (reach, reach), (0, 0))
    wide = np.pad(frames, pad, mode="edge").astype(np.float64)
    rows = sum(k * wide[:, n : n + frames.shape[1]] for n, k in enumerate(kernel))
    both = sum(k * rows[:, :, n : n + frames.shape[2]] for n, k in enumerate(kernel))
    return _bytes(np.asarray(both))


def add_noise(frames: Frames, rng: Rng) -> Frames:
    """Add fresh noise to every pixel of every frame, 6 to 12 % of the range."""
    return _bytes(frames + 255.0 * rng.uniform(0.06, 0.12) * rng.standard_normal(frames.shape))


def jitter(frames: Frames, rng: Rng) -> Frames:
    """Shift frames back and forth by one or two 32nds of the height, far less than `shake`."""
    height, width = frames.shape[1:3]
    unit = max(1, height // 32)
    reach = 2 * unit
    shifted = np.empty_like(frames)
    for index, frame in enumerate(frames):
        sense = 1 if index % 2 else -1
        down, right = sense * unit * rng.integers(0, 2), sense * unit * rng.integers(1, 3)
        padded = np.pad(frame, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        shifted[index] = padded[reach - down :, reach - right :][:height, :width]
    return shifted


def play_backwards(frames: Frames, rng: Rng) -> Frames:
    """Show the last frame first."""
    return frames[::-1].copy()
