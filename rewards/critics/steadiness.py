"""Flicker and warping, each a scorer of its own. T frames, H W pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.critics.flow import Picture, dense_flow, flow_pictures, warped_back
from rlvid.rewards.critics.tracking import Floats, Frames, to_frames

BLOCKS = 4
"""Blocks along each side in which brightness is followed."""


class FlickerCritic:
    """How steady brightness and colour are from frame to frame, in [0, 1].

    exp(-f / `scale`), f the mean second difference over time of the median colour of 4 x 4 blocks,
    the quarter of the blocks that change most left out: something moves there.

    Gamed by: a still clip; pair it with `motion_amount`.
    """

    CLAIMS = ("flicker",)
    GRADED = ("flicker_strength",)
    BLIND_TO = (
        "flicker of less than a quarter of the picture",
        "slow drift of brightness or colour",
        "motion, shapes and the prompt",
    )

    WORKING_BYTES = 24.0

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        scale: float = 0.05
        """Second difference, in [0, 1] units, at which the score is 1/e."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.clip_spec = ClipSpec(min_frames=3)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] -> [B] float32; the prompts are not read."""
        values = [flicker(to_frames(video)) for video in videos]
        return torch.exp(-torch.tensor(values) / self._config.scale)


def flicker(frames: Frames) -> float:
    """Mean absolute second difference of the block medians of [T, H, W, 3], [0, 1] units."""
    _, height, width, _ = frames.shape
    rows, columns = (np.linspace(0, size, BLOCKS + 1).astype(int) for size in (height, width))
    medians = [
        np.median(frames[:, top:bottom, left:right].reshape(len(frames), -1, 3), axis=1)
        for top, bottom in zip(rows[:-1], rows[1:], strict=True)
        for left, right in zip(columns[:-1], columns[1:], strict=True)
        if bottom > top and right > left
    ]
    change = np.abs(np.diff(np.stack(medians), n=2, axis=1)).mean(axis=(1, 2))
    kept = np.sort(change)[: max(1, 3 * len(change) // 4)]
    return float(kept.mean())


class WarpingCritic:
    """How rigidly the picture moves, in [0, 1]: no wobbling, no parts that come from nowhere.

    exp(-e / `error_scale` - b / `bend_scale`). e is the error that is left when every frame is
    warped back on the one before by its optical flow, as in the warping error of Lai et al. (2018,
    arXiv:1808.00449) but the mean absolute one, and of every pixel: what a moving thing uncovers is
    not masked out, since flow is computed in one direction only. b is how much
    neighbouring points move differently, beyond what the one pair of frames before did.

    Gamed by: blur, and a still clip.
    """

    CLAIMS = ("warp",)
    GRADED = ("warp_strength",)
    BLIND_TO = (
        "whole-picture shifts: see motion_smoothness",
        "the order of frames where little moves (shuffled clips: AUC 0.953, no claim)",
        "wobbling of a picture without texture",
        "flicker, colours and the prompt",
    )

    WORKING_BYTES = 24.0

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        error_scale: float = 0.04
        """Mean absolute error, in [0, 1] units, at which the score is 1/e."""
        bend_scale: float = 2.0
        """Change of the flow's bending, px of 64 rows, at which the score is 1/e."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.clip_spec = ClipSpec(min_frames=3)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] -> [B] float32; the prompts are not read."""
        return torch.tensor([self._score(to_frames(video)) for video in videos])

    def _score(self, frames: Frames) -> float:
        error, bend = warping(frames)
        return float(np.exp(-error / self._config.error_scale - bend / self._config.bend_scale))


def warping(frames: Frames) -> tuple[float, float]:
    """Return (mean absolute warping error, mean change of the flow's bending in px of 64 rows)."""
    pictures = flow_pictures(frames)
    flows = [dense_flow(a, b) for a, b in zip(pictures[:-1], pictures[1:], strict=True)]
    errors, bends = [], []
    previous = None
    for index, flow in enumerate(flows):
        back = warped_back(pictures[index + 1], flow)
        errors.append(float(cv2.absdiff(back, pictures[index]).mean()) / 255.0)
        weight = _structure(pictures[index])
        # Less its own median: a shift of the whole picture, as by a camera, bends nothing.
        local = flow - np.median(flow.reshape(-1, 2), axis=0)
        if previous is not None:
            change = np.hypot(*np.moveaxis(local - previous, 2, 0))
            bends.append(float((weight * change).sum() / max(float(weight.sum()), 1e-6)))
        previous = local
    return float(np.mean(errors)), float(np.mean(bends))


def _structure(picture: Picture) -> Floats:
    """[H, W] gradient: where there is none, flow is a guess."""
    across, down = cv2.Sobel(picture, cv2.CV_32F, 1, 0), cv2.Sobel(picture, cv2.CV_32F, 0, 1)
    return np.asarray(np.hypot(across, down), dtype=np.float64)
