"""Perceptual change within a clip, by LPIPS: from frame to frame, and from first to last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.specialists.lpips import load_lpips


class LpipsChange:
    """How steadily a clip changes to the eye, in [0, 1]: neighbours near, frames apart farther.

        1.5 * (1 - sum_t d(t, t+1) / sum_t d(t, t+3)), clipped

    With d the LPIPS distance. Steady motion makes a frame three steps on about three times as
    different as the next one, which scores 1; where each frame is another picture, both are the
    same, which scores 0. A still clip has no change to judge and scores 0.

    Sees: flicker, shake, warping, shuffled frames; stillness.
    Blind to: reversed time, physics, the prompt; a held frame followed by a jump.
    Gamed by: any slow smooth drift of the picture.
    """

    CLAIMS = ("flicker", "shake", "warp", "shuffle")
    BLIND_TO = ("reversed time", "physics", "the prompt", "a held frame followed by a jump")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        floor: float = 0.01
        """LPIPS over three frames below which a clip counts as still."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._network = load_lpips("lpips_change")
        self.clip_spec = ClipSpec(min_frames=5)

    @torch.no_grad()
    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] -> [B] float32; the prompts are not read."""
        return torch.stack([self._one(video.float().cpu()) for video in videos])

    def _one(self, video: Tensor) -> Tensor:
        features = self._network.features(video)
        near, far = (
            self._network.between([f[:-gap] for f in features], [f[gap:] for f in features]).mean()
            for gap in (1, 3)
        )
        steady = 1.5 * (1.0 - near / far.clamp(min=1e-6))
        moved = (far / self._config.floor).clamp(max=1.0)
        return (steady * moved).clamp(0.0, 1.0)


class LpipsIdentity:
    """How much of the first picture is still there in the last, in (0, 1]: exp(-LPIPS / scale).

    For clips in which the same things should be there from first to last frame. What moves costs
    a little; what turns into something else costs much more.

    Sees: the picture drifting to another scene.
    Blind to: everything between the two frames; a small object changing in a large background.
    Gamed by: no motion at all, so give it a partner that asks for motion.
    """

    CLAIMS = ("scene_drift",)
    BLIND_TO = ("everything between first and last frame", "small objects")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        scale: float = 0.5
        """LPIPS that costs a factor e."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._network = load_lpips("lpips_identity")
        self.clip_spec = ClipSpec(min_frames=2)

    @torch.no_grad()
    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] -> [B] float32; the prompts are not read."""
        clips = videos.float().cpu()
        distances = [self._network(clip[:1], clip[-1:])[0] for clip in clips]
        return torch.exp(-torch.stack(distances) / self._config.scale)
