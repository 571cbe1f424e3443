"""Multi-view consistency of the tiny world: all that is static moves with one camera.

Lengths in world px. Letters: T frames, H W pixels, C columns of the canvas.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from rlvid.data.tiny_world.scene import WORLD_SIZE
from rlvid.rewards.critics.tracking import (
    MAX_PAN,
    NEIGHBOURS,
    Floats,
    Frames,
    reduced,
    saturation,
    to_frames,
)
from rlvid.rewards.critics.world_dimensions_sight import Seen

LEAST_TRAVEL = 2.0
"""World px of pan over a clip; less shows no second view. A true pan has 8."""
LEAST_TEXTURE = 0.01
"""Standard deviation of the background along its rows; the drawn one has 0.06."""
TRUE_SHARE = 0.97
"""What the least of the true clips reaches at 32 rows, where sub-pixel shifts blur the edges."""


def camera_moves(seen: Seen) -> bool:
    """Whether the caption asks for another view than the first."""
    return seen.facts["camera"] != "still"


def multi_view_consistency(seen: Seen) -> float:
    """How much of the background the other frames explain, each shifted by its pan.

    In shares of what they explain of a true clip.

    NaN where the camera moves less than LEAST_TRAVEL, or there is no texture to find again: both
    are excluded by VBench-2.0 too. Its weight for larger motion is left out, since how far the
    camera goes is `camera_motion`.
    """
    pan = seen.sight.objects.pan
    if float(np.ptp(pan)) < LEAST_TRAVEL:
        return math.nan
    return min(1.0, explained_share(to_frames(seen.video), pan) / TRUE_SHARE)


def explained_share(frames: Frames, pan: Floats) -> float:
    """Mean over [T, H, W, 3] of the squared correlation of each background with the others'.

    All frames are laid on one canvas by the camera's pan [T], without objects; a frame is compared
    with the mean of all but itself. Correlation along the rows only: what a pan leaves as it was,
    such as the horizon, says nothing of it; and neither light nor contrast counts. NaN without
    texture in half of the frames.
    """
    grey, free = _on_canvas(reduced(frames), pan)
    total, weight = (free * grey).sum(axis=0), free.sum(axis=0)
    shares = []
    for picture, there in zip(grey, free, strict=True):
        mean = (total - there * picture) / np.maximum(weight - there, 1.0)
        both = there * (weight - there >= 1.0)
        own, others = _without_rows(picture, both), _without_rows(mean, both)
        power, expected = float((own**2).sum()), float((others**2).sum())
        if power > LEAST_TEXTURE**2 * float(both.sum()):
            common = max(0.0, float((own * others).sum()))
            shares.append(common**2 / (power * max(expected, 1e-9)))
    return float(np.mean(shares)) if 2 * len(shares) > len(frames) else math.nan


def _on_canvas(frames: Frames, pan: Floats) -> tuple[Floats, Floats]:
    """[T, H, C] grey pictures and where they show background, 0 or 1, in world coordinates."""
    num_frames, height, width, _ = frames.shape
    pixels = height / WORLD_SIZE
    margin = math.ceil(MAX_PAN * pixels) + 1
    grey, free = np.zeros((2, num_frames, height, width + 2 * margin))
    for index, (frame, mask) in enumerate(zip(frames, saturation(frames)[0], strict=True)):
        seen = 1.0 - cv2.dilate((mask > 0.1).astype(np.uint8), NEIGHBOURS).astype(np.float32)
        shift = np.array([[1.0, 0.0, margin + pan[index] * pixels], [0.0, 1.0, 0.0]])
        size = (grey.shape[2], height)
        grey[index] = cv2.warpAffine(frame.mean(axis=2), shift, size)
        free[index] = cv2.warpAffine(seen, shift, size) > 0.999
    return grey, free


def _without_rows(picture: Floats, weight: Floats) -> Floats:
    """[H, C] less the mean of each row, 0 where the weight is."""
    mean = (weight * picture).sum(axis=1) / np.maximum(weight.sum(axis=1), 1.0)
    return np.asarray(weight * (picture - mean[:, None]), dtype=np.float64)
