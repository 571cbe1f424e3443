"""How the camera moved in a clip: one similarity transform a frame, fitted to tracked corners.

Letters: T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from rlvid.rewards.critics.tracking import Floats, Frames

WORK_SIDE = 128
"""Short side at which corners are tracked; smaller pictures are enlarged, larger ones reduced."""
MAX_CORNERS = 200
CORNER_QUALITY = 0.002
"""Of the best corner; low, and corners apart, so that no small object has most of them."""
CORNER_SPACING = 6
"""Pixels (of WORK_SIDE)."""
ROUND_TRIP = 0.7
"""Pixels (of WORK_SIDE) by which a corner tracked there and back may miss its start."""
RANSAC_REACH = 0.5
"""Pixels (of WORK_SIDE) within which a corner agrees with the camera's motion."""
MIN_CORNERS = 6
"""Fewer than that fix no motion; the frame then counts as still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraPath:
    """What the picture did from the first frame to the last, all in shares of the short side.

    The camera does the opposite: when the picture goes left, the camera pans right.
    """

    edges: Floats
    """[4, 2] displacement (right, down) of the middles of the top, bottom, left and right edge."""
    confidence: float
    """[0, 1]: share of the corners that move with the camera, a mean over the frames."""

    @property
    def right(self) -> float:
        """Mean displacement of the picture to the right."""
        return float(self.edges[:, 0].mean())

    @property
    def down(self) -> float:
        return float(self.edges[:, 1].mean())

    @property
    def outward(self) -> float:
        """Mean displacement away from the centre; positive when the camera zooms in."""
        top, bottom, left, right = self.edges
        return float((right[0] - left[0] + bottom[1] - top[1]) / 4)

    @property
    def clockwise(self) -> float:
        """Mean displacement along the edges, clockwise on the screen."""
        top, bottom, left, right = self.edges
        return float((top[0] - bottom[0] + right[1] - left[1]) / 4)


def camera_path(frames: Frames) -> CameraPath:
    """Chain the motion of [T, H, W, 3] from frame to frame.

    Chained, not first against last: after a pan by half the view little is left to compare.
    """
    chain, shares, (height, width) = _chain(frames)
    middle = np.array([[width / 2, 0], [width / 2, height], [0, height / 2], [width, height / 2]])
    moved = middle @ chain[-1][:2, :2].T + chain[-1][:2, 2]
    return CameraPath(
        edges=(moved - middle) / min(height, width),
        confidence=float(np.mean(shares)) if shares else 0.0,
    )


def camera_offsets(frames: Frames) -> Floats:
    """[T] how far the camera went right of the middle frame, in shares of the height.

    By corners and RANSAC, so an object that nobody has masked does not pull it along.
    """
    chain, _, (height, width) = _chain(frames)
    centre = np.array([width / 2, height / 2, 1.0])
    right = np.array([width / 2 - float(matrix[0] @ centre) for matrix in chain]) / height
    return np.asarray(right - right[len(right) // 2], dtype=np.float64)


def _chain(frames: Frames) -> tuple[list[Floats], list[float], tuple[int, int]]:
    """Return T transforms from the first frame on, T - 1 shares of agreeing corners, the size."""
    grey = _grey(frames)
    chain, shares = [np.eye(3)], []
    for before, after in zip(grey[:-1], grey[1:], strict=True):
        step, share = _step(before, after)
        chain.append(step @ chain[-1])
        shares.append(share)
    height, width = grey[0].shape
    return chain, shares, (height, width)


def _grey(frames: Frames) -> list[npt.NDArray[np.uint8]]:
    height, width = frames.shape[1:3]
    scale = WORK_SIDE / min(height, width)
    size = (round(width * scale), round(height * scale))
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    result = []
    for frame in frames:
        grey = cv2.cvtColor((frame * 255.0).astype(np.uint8), cv2.COLOR_RGB2GRAY)
        result.append(np.asarray(cv2.resize(grey, size, interpolation=how), dtype=np.uint8))
    return result


def _step(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> tuple[Floats, float]:
    """Return the [3, 3] transform from one frame to the next and the share of corners in it."""
    still = np.eye(3), 0.0
    corners = cv2.goodFeaturesToTrack(before, MAX_CORNERS, CORNER_QUALITY, CORNER_SPACING)
    if corners is None or len(corners) < MIN_CORNERS:
        return still
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, None, winSize=(15, 15))
    back, returned, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, winSize=(15, 15))
    miss = np.abs(back - corners).max(axis=2).ravel()
    good = (found.ravel() == 1) & (returned.ravel() == 1) & (miss < ROUND_TRIP)
    if good.sum() < MIN_CORNERS:
        return still
    matrix, inside = cv2.estimateAffinePartial2D(
        corners[good], there[good], method=cv2.RANSAC, ransacReprojThreshold=RANSAC_REACH
    )
    if matrix is None or int(inside.sum()) < MIN_CORNERS:
        return still
    step = np.eye(3)
    step[:2] = matrix
    return step, float(inside.mean())
