"""Sharpness and motion of a clip without a reference, by filters of ffmpeg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.specialists.ffmpeg import frame_metadata, open_ffmpeg, to_rgb


class FfmpegQuality:
    """Sharp edges times share of frames that move, in [0, 1].

        sharpness = exp(-max(0, width - sharp_width) / width_scale),  width by blurdetect, px
        moving    = share of frames whose temporal information (siti, ITU-T P.910) is above a floor

    A technical floor, not a judge of beauty: use it to hold a training run to sharp, moving clips.

    Sees: blur, frozen frames, stillness.
    Blind to: the prompt, what moves and how, noise (which it takes for sharpness), colour.
    Gamed by: noise and hard edges. ffmpeg's blockdetect is left out: on drawn pictures it finds
    blocks in clean ones; and so is vmafmotion, which answers NaN for short clips.
    """

    CLAIMS = ("blur", "freeze_and_jump")
    BLIND_TO = ("noise, which it takes for sharpness", "the prompt", "colour", "block artefacts")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        sharp_width: float = 3.5
        """Width of edges, px of the clip, that counts as perfectly sharp. Depends on the size."""
        width_scale: float = 2.0
        """Px of further width that cost a factor e."""
        motion_floor: float = 2.0
        """Temporal information, deviation of the luma difference in 0 to 255, below which a frame
        holds still."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._ffmpeg = open_ffmpeg("ffmpeg_quality")
        self.clip_spec = ClipSpec(min_frames=2)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] -> [B] float32; the prompts are not read."""
        return torch.tensor([self.parts(video)["quality"] for video in videos])

    def parts(self, video: Tensor) -> Mapping[str, float]:
        """Return the score "quality" of [T, 3, H, W] and what it is made of."""
        config = self._config
        measured = frame_metadata(self._ffmpeg, to_rgb(video), "blurdetect,siti", fps=8)
        # The first frame has nothing before it, and blurdetect says NaN of one without an edge.
        widths = measured["blur"][np.isfinite(measured["blur"])]
        width = float(widths.mean()) if widths.size else np.inf
        moving = float((measured["siti.ti"][1:] >= config.motion_floor).mean())
        sharpness = float(np.exp(-max(0.0, width - config.sharp_width) / config.width_scale))
        return {"quality": sharpness * moving, "sharpness": sharpness, "moving": moving}
