"""Dense optical flow (DIS) at one small size, for the critics of motion."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rlvid.rewards.critics.guards import LUMA
from rlvid.rewards.critics.tracking import Frames

Picture = npt.NDArray[np.uint8]

FLOW_HEIGHT = 64
"""Rows at which flow is computed; the patches of DIS are 8 px wide, too wide for 32 rows."""


def flow_pictures(frames: Frames) -> list[Picture]:
    """[T, H, W, 3] or [T, H, W] in [0, 1] -> T grey uint8 pictures of FLOW_HEIGHT rows.

    Smoothed a little: a pixel of noise is not motion.
    """
    luma = frames @ LUMA if frames.ndim == 4 else frames
    width = max(1, round(luma.shape[2] * FLOW_HEIGHT / luma.shape[1]))
    how = cv2.INTER_CUBIC if luma.shape[1] < FLOW_HEIGHT else cv2.INTER_AREA
    pictures = []
    for image in luma:
        smooth = cv2.GaussianBlur(image, (3, 3), 0.8)
        scaled = cv2.resize(smooth, (width, FLOW_HEIGHT), interpolation=how)
        pictures.append(np.clip(scaled * 255.0, 0, 255).astype(np.uint8))
    return pictures


def dense_flow(before: Picture, after: Picture) -> Frames:
    """[H, W, 2] pixels (right, down) that each point of `before` moves."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(dis.calc(before, after, None), dtype=np.float32)


def warped_back(after: Picture, flow: Frames) -> Picture:
    """`after` seen where its points were before they moved by `flow`."""
    columns, rows = _grid(*after.shape)
    moved = cv2.remap(
        after,
        columns + flow[..., 0],
        rows + flow[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(moved, dtype=np.uint8)


@lru_cache(maxsize=8)
def _grid(height: int, width: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    columns, rows = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    return columns, rows
