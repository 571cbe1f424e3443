"""What a reward is: a small class that scores clips.

A scorer declares the clip it wants (`ClipSpec`) and implements `score`. Group-wise and pairwise
rewards implement `score_group` instead; the pool sees by protocol which one is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from rlvid.records import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSpec:
    """What a scorer needs of a clip; None takes whatever comes."""

    fps: int | None = None
    min_frames: int | None = None
    height: int | None = None
    width: int | None = None


@runtime_checkable
class Reward(Protocol):
    """Scores each clip on its own."""

    clip_spec: ClipSpec

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B] float32, higher is better."""
        ...


@runtime_checkable
class GroupReward(Protocol):
    """Scores the clips of one prompt together."""

    clip_spec: ClipSpec

    def score_group(self, videos: Tensor, prompt: Prompt) -> Tensor:
        """[G, T, 3, H, W] of one prompt -> [G] float32, higher is better."""
        ...


class RewardError(RuntimeError):
    """A scorer broke its contract or failed; the message names it."""
