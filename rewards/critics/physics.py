"""Physical plausibility from the tracked motion of the object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlvid.data.tiny_world.scene import GRAVITY, GROUND_Y
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.critics.motion_fit import Floats, fit_horizontal, fit_vertical
from rlvid.rewards.critics.tracking import TrackedClip, to_frames, track


class PhysicsCritic:
    """How near the tracked motion is to one that obeys the laws of the tiny world, in [0, 1].

    A lawful motion is free flight under the world's gravity, bounces on the ground that keep or
    lose speed, rest, and steady sideways motion with at most one rebound. The nearest lawful
    motion is fitted; score = exp(-mean distance / `tolerance`) * permanence^2.

    Sees: reversed or wrong gravity, teleporting, vanishing, energy gained at a bounce or from
    nothing, hovering.
    Blind to: whether the motion is the one asked for, turning, whether a rebound has a wall,
    the object's shape and colour, everything about the background.
    Gamed by: an object that lies still on the ground, which is lawful; pair it with adherence.
    """

    CLAIMS = ("reversed_gravity", "teleport", "vanish", "energy_gain", "hover")
    """Breakages of the tiny world that it must tell from true clips."""
    BLIND_TO = (
        "all objects but the largest",
        "whether the motion is the one asked for",
        "whether a rebound has a wall; turning, shape, colour and background",
    )

    WORKING_BYTES = 113.0

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        fps: int = 8
        """Frames a second of the clips; gravity in frames depends on it."""
        gravity: float = GRAVITY
        """World px / s^2, downwards."""
        tolerance: float = 2.5
        """World px of mean distance at which the score has fallen to 1/e."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.clip_spec = ClipSpec(fps=config.fps, min_frames=5)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] -> [B] float32; the prompts are not read."""
        return torch.tensor([self.parts(track(to_frames(v)))["physics"] for v in videos])

    def parts(self, clip: TrackedClip) -> Mapping[str, float]:
        """Return the score "physics" and its factors "vertical", "horizontal", "permanence"."""
        if not clip.is_seen:
            names = ("physics", "vertical", "horizontal", "permanence")
            return dict.fromkeys(names, 0.0)
        config = self._config
        times = np.arange(len(clip.area)) / config.fps
        weights = clip.confidence + 1e-3
        heights = GROUND_Y - clip.base - clip.world[:, 1]
        vertical = fit_vertical(heights, weights, times, config.gravity).error
        horizontal = fit_horizontal(clip.world[:, 0], weights, times).error
        presence = permanence(clip)
        distance = float(np.hypot(vertical, horizontal))
        return {
            "physics": float(np.exp(-distance / config.tolerance)) * presence**2,
            "vertical": float(np.exp(-vertical / config.tolerance)),
            "horizontal": float(np.exp(-horizontal / config.tolerance)),
            "permanence": presence,
        }


def permanence(clip: TrackedClip) -> float:
    """Mean over frames of how much of the object is there, in [0, 1]."""
    usual = float(np.median(clip.area[clip.area > 0])) if (clip.area > 0).any() else 0.0
    size: Floats = np.clip(clip.area / max(usual, 1e-6), 0.0, 1.0)
    return float((size * np.clip(2 * clip.confidence, 0.0, 1.0)).mean())
