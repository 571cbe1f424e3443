"""Where a video cuts from one scene to another, from its pixels alone.

Letters: T frames of H x W.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Histogram = npt.NDArray[np.float32]
Thumbnail = npt.NDArray[np.float32]

NUM_BINS = 8
"""Of each colour channel, coarse enough to survive compression."""
THUMBNAIL = 16
"""px; small enough that an object which moves by a few per cent of the frame changes little."""
FULL_DIFFERENCE = 0.25
"""Mean absolute difference, of 1, that counts as wholly different. Our choice."""
SHARES = np.clip(
    1.0 - np.abs(np.arange(256)[:, None] * (NUM_BINS - 1) / 255.0 - np.arange(NUM_BINS)), 0.0, 1.0
)
"""[256, NUM_BINS]: what part of a level goes to which bin. Each is split between the two nearest,
so that a flat sky which grows darker does not jump from one bin to the next."""


def find_shots(frames: Frames, threshold: float) -> list[tuple[int, int]]:
    """Return the shots as (start, stop), stop excluded; they cover all frames in order.

    There is a cut before frame t when it differs from frame t - 1 by more than `threshold`, and the
    difference is there to stay: t - 2 differs from t, and t - 1 from t + 1, as much. So a flash or
    a damaged picture of one frame cuts nothing. Dissolves and fades are slower than a frame and
    are not found.

    Args:
        frames: uint8 [T, H, W, 3], RGB.
        threshold: in (0, 1), on the scale of `distance`.
    """
    looks = [describe(frame) for frame in frames]
    cuts = [t for t in range(1, len(looks)) if _is_cut(looks, t, threshold)]
    edges = [0, *cuts, len(looks)]
    return [(start, stop) for start, stop in zip(edges, edges[1:], strict=False) if stop > start]


def _is_cut(looks: list[tuple[Histogram, Thumbnail]], t: int, threshold: float) -> bool:
    pairs = [(t - 1, t), (t - 2, t), (t - 1, t + 1)]
    return all(
        distance(looks[a], looks[b]) > threshold for a, b in pairs if a >= 0 and b < len(looks)
    )


def describe(frame: npt.NDArray[Any]) -> tuple[Histogram, Thumbnail]:
    """Return what frames are compared by.

    Args:
        frame: uint8 [H, W, 3].

    Returns:
        A histogram of each channel [3, NUM_BINS], each with the sum 1, and a thumbnail [16, 16, 3]
        in [0, 1].
    """
    counts = np.stack([np.bincount(frame[..., c].ravel(), minlength=256) for c in range(3)])
    histogram = counts @ SHARES / (frame.shape[0] * frame.shape[1])
    small = cv2.resize(frame, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return histogram.astype(np.float32), small.astype(np.float32) / 255.0


def distance(first: tuple[Histogram, Thumbnail], second: tuple[Histogram, Thumbnail]) -> float:
    """Return how different two frames are, 0 to 1.

    The mean of two parts: the share of pixels that would have to change their level for the
    histograms to agree, mean over channels, which is blind to motion; and the mean absolute
    difference of the thumbnails in units of `FULL_DIFFERENCE`, at most 1, which is blind to
    texture.
    """
    colours = float(np.abs(first[0] - second[0]).sum()) / 2.0 / len(first[0])
    pixels = float(np.abs(first[1] - second[1]).mean()) / FULL_DIFFERENCE
    return (colours + min(1.0, pixels)) / 2.0
