"""What a clip is judged by before it is taken: motion, looks, text, and likeness to others.

Plain functions of pixels that give the same numbers everywhere; a learned judge is a scorer of
`rewards`, not of the intake. Letters: T frames of H x W, Q hashed frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Hash = npt.NDArray[np.uint64]

TextArea = Callable[[Frames], float]
"""From frames, uint8 [T, H, W, 3], to the share of the picture that text covers, in [0, 1]."""

FLOW_SIDE = 64
"""px of the longer side on which motion is measured: it is a mean over the frame, not a detail."""
FULL_CONTRAST = 64.0
"""Levels of 255; about the standard deviation of a luma spread evenly over its range (73.6)."""
FULL_COLOUR = 109.0
"""Colourfulness that its authors' table calls extremely colourful (0 is not colourful)."""
HALF_SHARPNESS = 100.0
"""Variance of the Laplacian that earns half the mark; below about this a photograph looks blurred.
Our choice."""
LOOKS_FRAMES = 4
"""Frames, evenly spread, that the looks are the mean of."""
HASHED_FRAMES = 4
"""Q: frames, evenly spread, that a clip is told by."""
HASH_MARGIN = 2.0
"""Levels of 255 by which a neighbour must be brighter to count: the noise of a flat area does not
change its bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """The measurable parts of an aesthetic score, each in [0, 1]."""

    contrast: float
    colourfulness: float
    sharpness: float

    @property
    def aesthetic(self) -> float:
        """Their plain mean, in [0, 1]. Our choice: no study of ours weighs them."""
        return (self.contrast + self.colourfulness + self.sharpness) / 3.0


def motion(frames: Frames, fps: float) -> float:
    """Return the mean optical flow, per cent of the frame's diagonal per second.

    Farneback's dense flow between neighbouring frames, mean length over pixels and pairs. A camera
    that pans once across its picture in 4 s gives about 22 on 16:9; a change of light gives little.

    Args:
        frames: uint8 [T, H, W, 3], T >= 2.
        fps: of the frames.
    """
    height, width = frames.shape[1:3]
    scale = min(1.0, FLOW_SIDE / max(height, width))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    lumas = [cv2.resize(_luma(frame), size, interpolation=cv2.INTER_AREA) for frame in frames]
    total = 0.0
    for first, second in zip(lumas, lumas[1:], strict=False):
        flow = cv2.calcOpticalFlowFarneback(first, second, None, 0.5, 3, 9, 2, 5, 1.1, 0)
        total += float(np.linalg.norm(flow, axis=2).mean())
    return 100.0 * total / (len(lumas) - 1) / math.hypot(*size) * fps


def looks(frames: Frames) -> Looks:
    """Return the parts of the aesthetic score of a clip, means over `LOOKS_FRAMES` frames.

    Contrast: standard deviation of luma. Sharpness: v / (v + 100) of the variance v of the
    Laplacian of luma, at the size given.

    Args:
        frames: uint8 [T, H, W, 3].
    """
    parts = np.array([_looks_of(frame) for frame in _spread(frames, LOOKS_FRAMES)])
    contrast, colour, sharpness = (float(value) for value in parts.mean(axis=0))
    return Looks(contrast=contrast, colourfulness=colour, sharpness=sharpness)


def _looks_of(frame: npt.NDArray[Any]) -> tuple[float, float, float]:
    luma = _luma(frame)
    detail = float(cv2.Laplacian(luma, cv2.CV_32F).var())
    return (
        min(1.0, float(luma.std()) / FULL_CONTRAST),
        min(1.0, colourfulness(frame) / FULL_COLOUR),
        detail / (detail + HALF_SHARPNESS),
    )


def colourfulness(frame: npt.NDArray[Any]) -> float:
    """Return M of Hasler and Suesstrunk, "Measuring colorfulness in natural images" (2003).

    With rg = R - G and yb = (R + G) / 2 - B,

        M = sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2)

    Args:
        frame: uint8 [H, W, 3].
    """
    red, green, blue = (frame[..., channel].astype(np.float32) for channel in range(3))
    rg, yb = red - green, (red + green) / 2.0 - blue
    spread = math.sqrt(float(rg.var()) + float(yb.var()))
    return spread + 0.3 * math.hypot(float(rg.mean()), float(yb.mean()))


def clip_hash(frames: Frames) -> Hash:
    """Return the difference hash of Q frames, evenly spread: [Q] uint64.

    A bit says whether a pixel of the frame, shrunk to 8 rows of 9, is brighter than its left
    neighbour. Size, compression and brightness hardly change it; colour does not enter.

    Args:
        frames: uint8 [T, H, W, 3].
    """
    hashes = []
    for frame in _spread(frames, HASHED_FRAMES):
        small = cv2.resize(_luma(frame).astype(np.float32), (9, 8), interpolation=cv2.INTER_AREA)
        bits = (small[:, 1:] - small[:, :-1] > HASH_MARGIN).reshape(-1)
        hashes.append(int.from_bytes(np.packbits(bits).tobytes(), "big"))
    return np.array(hashes, dtype=np.uint64)


class SeenHashes:
    """The hashes of the clips kept so far; a search compares with every one, 32 bytes each."""

    def __init__(self) -> None:
        self._hashes = np.zeros((64, HASHED_FRAMES), dtype=np.uint64)
        self._names: list[str] = []

    def nearest(self, clip: Hash) -> tuple[float, str]:
        """Return the mean distance over frames, in bits of 64, and the name of the nearest clip.

        (inf, "") while there is none.
        """
        if not self._names:
            return math.inf, ""
        differing = np.bitwise_count(self._hashes[: len(self._names)] ^ clip)
        distances = differing.mean(axis=1)
        index = int(distances.argmin())
        return float(distances[index]), self._names[index]

    def add(self, clip: Hash, name: str) -> None:
        if len(self._names) == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
        self._hashes[len(self._names)] = clip
        self._names.append(name)


def _luma(frame: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def _spread(frames: Frames, count: int) -> list[npt.NDArray[np.uint8]]:
    """Return `count` frames, first and last among them, with repeats where there are fewer."""
    return [frames[index] for index in np.linspace(0, len(frames) - 1, count).round().astype(int)]
