"""How different the clips of one prompt are, against simulated clips of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from rlvid.data.tiny_world import track_of
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.critics.adherence import facts_of
from rlvid.rewards.critics.tracking import Floats
from rlvid.rewards.critics.world_dimensions_sight import SIGHTS

EXAMPLES = 8
"""Simulated clips of a caption that diversity is measured against."""
EXAMPLE_SEED = 9_000_000


class WorldDiversity:
    """How far apart the clips of one prompt are, against simulated clips of it, in [0, 1].

    VBench-2.0 compares features of 20 clips; here it is the mean distance between the paths of the
    object, over the same for clips of other seeds that the world draws, at most 1. Needs two clips.
    """

    CLAIMS: tuple[str, ...] = ()
    BLIND_TO = ("the look of the clips", "whether they show what was asked for")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        fps: int = 8

    def __init__(self, config: Config) -> None:
        self._fps = config.fps
        self.clip_spec = ClipSpec(fps=config.fps, min_frames=8)

    def score_group(self, videos: Tensor, prompt: Prompt) -> Tensor:
        """[G, T, 3, H, W] of one prompt -> [G] float32, the same for each; NaN for one clip."""
        if len(videos) < 2:
            return torch.full((len(videos),), torch.nan)
        paths = [SIGHTS.of(video).clip.world for video in videos]
        facts = tuple(sorted(facts_of(prompt).items()))
        usual = _usual_distance(facts, videos.shape[1], self._fps)
        return torch.full((len(videos),), min(1.0, _mean_distance(paths) / usual))


@lru_cache(maxsize=1024)
def _usual_distance(facts: tuple[tuple[str, str], ...], num_frames: int, fps: int) -> float:
    seeds = range(EXAMPLE_SEED, EXAMPLE_SEED + EXAMPLES)
    paths = [track_of(dict(facts), s, num_frames=num_frames, fps=fps).positions for s in seeds]
    return max(_mean_distance(paths), 1e-6)


def _mean_distance(paths: Sequence[Floats]) -> float:
    """Mean over pairs and frames of the distance, world px."""
    pairs = [np.hypot(*(a - b).T).mean() for a, b in combinations(paths, 2)]
    return float(np.mean(pairs))
