"""How much moves, and how smoothly, each a scorer of its own. T frames, H W pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.critics.flow import FLOW_HEIGHT, dense_flow, flow_pictures, warped_back
from rlvid.rewards.critics.guards import LUMA, stillness
from rlvid.rewards.critics.tracking import Frames, to_frames


class MotionAmountCritic:
    """Whether about the right amount moves, in [0, 1]: neither a still nor a frantic clip.

    The amount is the mean, over the frames, of how far the fastest twentieth of the picture goes
    between two frames, in shares of the height. The score rises to 1 at `low`, stays there up to
    `high`, and falls again; so more motion is never better by itself, and there is nothing to
    gain inside the band. Times 1 - `stillness` of the guards, which noise cannot buy.

    Gamed by: any motion at all, of anything.
    """

    CLAIMS = ("still",)
    BLIND_TO = (
        "what moves and whether it should",
        "direction and smoothness of the motion",
        "strong noise, a tenth of the range and more, which it takes for motion",
    )

    WORKING_BYTES = 24.0

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        low: float = 0.004
        """Share of the height a frame from which there is motion enough."""
        high: float = 0.15
        """From which there is too much; at twice it the score is 0."""

    def __init__(self, config: Config) -> None:
        if not 0 < config.low < config.high:
            raise ValueError(
                f"motion_amount: expected 0 < low < high, got low {config.low} and high "
                f"{config.high}. They are shares of the height a frame."
            )
        self._config = config
        self.clip_spec = ClipSpec(min_frames=2)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] -> [B] float32; the prompts are not read."""
        return torch.tensor([self._score(to_frames(video)) for video in videos])

    def _score(self, frames: Frames) -> float:
        amount = motion_amount(frames)
        rising = min(1.0, amount / self._config.low)
        falling = float(np.clip(2.0 - amount / self._config.high, 0.0, 1.0))
        return rising * falling * (1.0 - stillness(np.asarray(frames @ LUMA, dtype=np.float32)))


def motion_amount(frames: Frames) -> float:
    """Mean over frames of the mean flow of the fastest twentieth, in shares of the height."""
    pictures = flow_pictures(frames)
    amounts = []
    for before, after in zip(pictures[:-1], pictures[1:], strict=True):
        length = np.hypot(*np.moveaxis(dense_flow(before, after), 2, 0)).ravel()
        count = max(1, len(length) // 20)
        amounts.append(float(np.partition(length, -count)[-count:].mean()) / FLOW_HEIGHT)
    return float(np.mean(amounts))


class MotionSmoothnessCritic:
    """How well each frame lies halfway between its neighbours, in [0, 1], seen without colour.

    The flow between two frames is halved, both are warped to the middle, and the frame that is
    there is compared: exp(-error / `scale`), the root mean square over the clip, so that one jump
    counts. The idea is that of VBench's motion smoothness (arXiv:2311.17982), which predicts the
    middle frame by a trained interpolator; here it is optical flow. Grey, as the reward on motion
    of LongCat-Video (arXiv:2510.22200) is, so that it cannot be bought with colour.

    Gamed by: a still clip, which is perfectly smooth, and by blur; pair it with `motion_amount`.
    """

    CLAIMS = ("jitter", "shake")
    GRADED = ("jitter_strength",)
    BLIND_TO = (
        "colour",
        "stillness and held frames",
        "the order of frames where little moves (shuffled clips: AUC 0.946)",
        "smooth motion that is wrong",
        "parts that move very fast",
    )

    WORKING_BYTES = 24.0

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        scale: float = 0.05
        """Error in [0, 1] of luma at which the score is 1/e."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.clip_spec = ClipSpec(min_frames=3, colour="grey")

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 1, H, W] -> [B] float32; the prompts are not read."""
        values = [interpolation_error(video) for video in videos]
        return torch.exp(-torch.tensor(values, dtype=torch.float32) / self._config.scale)


def interpolation_error(video: Tensor) -> float:
    """Root mean square over [T, C, H, W] of the difference to the interpolated middle frames."""
    if video.shape[1] == 1:
        luma = np.ascontiguousarray(video[:, 0].detach().cpu().float().numpy())
    else:
        luma = np.asarray(to_frames(video) @ LUMA, dtype=np.float32)
    pictures = flow_pictures(luma)
    errors = []
    for before, here, after in zip(pictures, pictures[1:], pictures[2:], strict=False):
        half = dense_flow(before, after) * np.float32(0.5)
        # Both neighbours at the middle: where one is hidden the other may be right.
        first = cv2.absdiff(warped_back(before, -half), here)
        second = cv2.absdiff(warped_back(after, half), here)
        apart = np.minimum(first, second).astype(np.float64) / 255.0
        errors.append(float(np.sqrt((apart**2).mean())))
    return float(np.sqrt(np.mean(np.square(errors))))
