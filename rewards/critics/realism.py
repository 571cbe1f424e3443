"""Temporal realism from optical flow and frame differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.critics.tracking import Floats, Frames, object_look, to_frames

FLOW_HEIGHT = 64
"""Rows at which flow is computed; the patches of DIS are 8 px wide, too wide for 32 rows."""
MIN_AREA = 5.0
"""World px^2; an object smaller than that is none."""
PART_FLOOR = 0.02
"""Least value of one part, so that a clip with one hopeless part can still be made better."""


class RealismCritic:
    """How steadily a clip hangs together from frame to frame, in [0, 1].

    The geometric mean of six parts, each 1 in a true clip and near 0 in a broken one:
    `brightness` (second difference of the background's median colour), `compensation` (what the
    flow cannot explain), `steadiness` (how little the flow changes where there is structure),
    `order` (neighbours are more alike than frames three apart), `pace` (no held frames, no
    jumps) and `identity` (the coloured object keeps its area and its colour).

    Sees: flicker, shake, warping, shuffled frames, freezing and jumping.
    Blind to: reversed time, physics, the prompt, and slow drift of colours.
    Gamed by: slow smooth motion of a blurred picture; a clip without any motion earns nothing in
    `pace`, but a uniform slow drift earns all of it.
    """

    CLAIMS = ("flicker", "shake", "warp", "shuffle", "freeze_and_jump")
    """Breakages of the tiny world that it must tell from true clips."""
    BLIND_TO = (
        "reversed time, physics, the prompt",
        "slow drift of colours",
        "light and colour of the frames",
    )

    WORKING_BYTES = 52.0

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        brightness_scale: float = 0.05
        """Second difference of the median colour, in [0, 1] units, that costs a factor e."""
        compensation_scale: float = 0.03
        """Mean absolute error after flow compensation that costs a factor e."""
        steadiness_scale: float = 3.0
        """Change of flow from frame to frame, in px of 64 rows, that costs a factor e."""
        area_scale: float = 0.2
        """Coefficient of variation of the object's area that costs a factor e."""
        colour_scale: float = 0.1
        """Standard deviation over time of the object's colour that costs a factor e."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.clip_spec = ClipSpec(min_frames=5)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] -> [B] float32; the prompts are not read."""
        return torch.tensor([self.parts(to_frames(video))["realism"] for video in videos])

    def parts(self, frames: Frames) -> Mapping[str, float]:
        """Return the score "realism" of [T, H, W, 3] and its six parts."""
        config = self._config
        # A pixel of noise is not motion; the blur is far below the size of any object.
        smooth = np.stack([cv2.GaussianBlur(frame, (3, 3), 0.8) for frame in frames])
        error, change = flow_statistics(smooth)
        area, colours = object_look(frames)
        area_change = float(area.std() / max(float(area.mean()), MIN_AREA)) / config.area_scale
        colour_change = float(colours.std(axis=0).mean()) / config.colour_scale
        identity = float(np.exp(-area_change - colour_change)) if area.any() else 0.0
        parts = {
            "brightness": float(np.exp(-background_flicker(frames) / config.brightness_scale)),
            "compensation": float(np.exp(-error / config.compensation_scale)),
            "steadiness": float(np.exp(-change / config.steadiness_scale)),
            "order": order_score(smooth),
            "pace": pace_score(smooth),
            "identity": identity,
        }
        floored = np.maximum(np.array(list(parts.values())), PART_FLOOR)
        return {"realism": float(np.exp(np.log(floored).mean())), **parts}


def background_flicker(frames: Frames) -> float:
    """Mean second difference over time of the median colour; a pan or a moving object keeps it."""
    median = np.median(frames.reshape(len(frames), -1, 3), axis=1)
    return float(np.abs(np.diff(median, n=2, axis=0)).mean())


def flow_statistics(frames: Frames) -> tuple[float, float]:
    """Return the mean error after flow compensation, and the mean change of flow over time.

    The change is weighted by the picture's gradient: where there is no structure, flow is a guess.
    """
    luma = frames @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    width = max(1, round(luma.shape[2] * FLOW_HEIGHT / luma.shape[1]))
    grey = [
        cv2.resize(
            (image * 255).astype(np.uint8), (width, FLOW_HEIGHT), interpolation=cv2.INTER_CUBIC
        )
        for image in luma
    ]
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = [dis.calc(before, after, None) for before, after in zip(grey, grey[1:], strict=False)]
    columns, rows = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(FLOW_HEIGHT, dtype=np.float32)
    )
    errors, changes = [], []
    for index, flow in enumerate(flows):
        back = cv2.remap(
            grey[index + 1],
            columns + flow[..., 0],
            rows + flow[..., 1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        errors.append(float(cv2.absdiff(back, grey[index]).mean()) / 255.0)
        if index:
            weight = _gradient(grey[index])
            change = np.hypot(*np.moveaxis(flow - flows[index - 1], 2, 0))
            changes.append(float((weight * change).sum() / max(float(weight.sum()), 1e-6)))
    return float(np.mean(errors)), float(np.mean(changes))


def _gradient(image: Frames) -> Floats:
    across = cv2.Sobel(image, cv2.CV_32F, 1, 0)
    down = cv2.Sobel(image, cv2.CV_32F, 0, 1)
    return np.asarray(np.hypot(across, down), dtype=np.float64)


def order_score(frames: Frames) -> float:
    """1 when neighbours are far more alike than frames three apart, 0 when they are not at all."""
    near = float(np.abs(frames[1:] - frames[:-1]).mean())
    far = float(np.abs(frames[3:] - frames[:-3]).mean())
    ratio = (near + 1e-3) / (far + 1e-3)
    # Steady motion gives 1/3, and up to 0.5 when objects move by their own size between frames.
    return float(np.clip((1.0 - ratio) / 0.6, 0.0, 1.0))


def pace_score(frames: Frames) -> float:
    """1 when every frame brings its share of the change, less for frames held and for jumps."""
    change = np.abs(frames[1:] - frames[:-1]).mean(axis=(1, 2, 3))
    share = change / (change.mean() + 1e-3)
    held = float(np.exp(-((share / 0.25) ** 2)).mean())
    jump = max(0.0, float(share.max()) - 1.7)
    return float(np.exp(-held / 0.15 - jump / 1.5))
