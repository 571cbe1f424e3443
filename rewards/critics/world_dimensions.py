"""The tiny world's own version of VBench-2.0's dimensions, decided by simulation, not by a model.

Each is the rule of the dimension it is named after (arXiv:2503.21755; `rlvid.evaluation.vbench2`),
with its questions answered exactly: what moves how is told by the nearest simulated clip, what
breaks a law by the laws the world was drawn with. What a rule needs of the caption comes from its
facts, so a caption of another kind is excluded (NaN), as VBench-2.0 excludes what it cannot judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rlvid.data.tiny_world import track_of
from rlvid.data.tiny_world.grammar import ATTRIBUTES
from rlvid.data.tiny_world.scene import GRAVITY, GROUND_Y
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.critics import laws
from rlvid.rewards.critics.adherence import (
    camera_score,
    colour_score,
    facts_of,
    object_score,
    path_scores,
)
from rlvid.rewards.critics.laws import World
from rlvid.rewards.critics.objects import ObjectClip, follow_objects
from rlvid.rewards.critics.tracking import Floats, TrackedClip, to_frames, track

WorldDimensionName = Literal[
    "mechanics",
    "motion_rationality",
    "instance_preservation",
    "dynamic_spatial_relationship",
    "camera_motion",
    "composition",
]
KEPT = 0.5
"""Value above which a law counts as kept; all true clips that were tried keep every law."""
MECHANICS = (laws.gravity, laws.energy, laws.momentum, laws.solidity)
INSTANCE = (laws.permanence, laws.unity, laws.identity)
EXAMPLES = 8
"""Simulated clips of a caption that diversity is measured against."""
EXAMPLE_SEED = 9_000_000


@dataclass(frozen=True, slots=True)
class _Seen:
    """One clip as the rules see it."""

    clip: TrackedClip
    objects: ObjectClip
    facts: Mapping[str, str]
    fps: int

    def argmax(self, name: str, score: Callable[[str], float]) -> float:
        """1 where the value the caption asks for is the one the clip shows best."""
        values = ATTRIBUTES[name]
        return float(max(values, key=score) == self.facts[name])

    def laws_kept(self, chosen: Sequence[Callable[[ObjectClip, World], float]]) -> list[bool]:
        world = World(fps=self.fps, gravity=GRAVITY, ground_y=GROUND_Y)
        return [law(self.objects, world) > KEPT for law in chosen]


def _mechanics(seen: _Seen) -> float:
    """Share of four laws kept: gravity, energy, momentum, solidity; the gate is that it moves."""
    return float(np.mean(seen.laws_kept(MECHANICS)))


def _motion_rationality(seen: _Seen) -> float:
    """All or nothing: the motion is the one asked for, and no other is nearer."""
    return seen.argmax(
        "motion", lambda v: path_scores(seen.clip, {**seen.facts, "motion": v}, seen.fps)[0]
    )


def _instance_preservation(seen: _Seen) -> float:
    """0 when anything appears, vanishes, fuses, splits or changes its colour."""
    return float(all(seen.laws_kept(INSTANCE)))


def _spatial(seen: _Seen) -> float:
    """The object ends on the side of its start that was asked for, by its path."""
    return seen.argmax(
        "direction", lambda v: path_scores(seen.clip, {**seen.facts, "direction": v}, seen.fps)[1]
    )


def _camera(seen: _Seen) -> float:
    """The label of the camera's motion is the one asked for."""
    return seen.argmax("camera", lambda v: camera_score(seen.clip, v, seen.fps))


def _composition(seen: _Seen) -> float:
    """Share of the items that are there: the shape, and its colour."""
    shape = seen.argmax("object", lambda v: object_score(seen.clip, v))
    colour = seen.argmax("colour", lambda v: colour_score(seen.clip, v))
    return (shape + colour) / 2.0


RULES: Mapping[WorldDimensionName, Callable[[_Seen], float]] = {
    "mechanics": _mechanics,
    "motion_rationality": _motion_rationality,
    "instance_preservation": _instance_preservation,
    "dynamic_spatial_relationship": _spatial,
    "camera_motion": _camera,
    "composition": _composition,
}
DIMENSION_CLAIMS: Mapping[WorldDimensionName, tuple[str, ...]] = {
    "mechanics": ("reversed_gravity", "hover", "energy_gain", "teleport", "sink", "through_wall"),
    "motion_rationality": ("wrong_motion",),
    "instance_preservation": ("vanish", "appear", "split", "merge", "colour_swap"),
    "dynamic_spatial_relationship": ("wrong_direction",),
    "camera_motion": ("wrong_camera",),
    "composition": ("wrong_object", "wrong_colour"),
}


class WorldDimension:
    """One dimension of a clip of the tiny world, in [0, 1].

    Meant for evaluation: its steps make it a poor reward. Sees what its rule names and is blind to
    everything else; a clip in which no object is seen has 0 in each but the camera.
    """

    BLIND_TO = ("everything its rule does not name",)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        dimension: WorldDimensionName = "mechanics"
        fps: int = 8
        """Frames a second of the clips."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.clip_spec = ClipSpec(fps=config.fps, min_frames=8)
        self.CLAIMS = DIMENSION_CLAIMS[config.dimension]

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] and B captions of the tiny world -> [B] float32."""
        pairs = zip(videos, prompts, strict=True)
        return torch.tensor([self._one(video, prompt) for video, prompt in pairs])

    def _one(self, video: Tensor, prompt: Prompt) -> float:
        name, frames = self._config.dimension, to_frames(video)
        clip, objects = track(frames), follow_objects(frames, "colour")
        if name != "camera_motion" and not (clip.is_seen and objects.tracks):
            return 0.0
        return RULES[name](_Seen(clip, objects, facts_of(prompt), self._config.fps))


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
        paths = [track(to_frames(video)).world for video in videos]
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
