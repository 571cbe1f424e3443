"""The tiny world's own version of VBench-2.0's dimensions, decided by simulation, not by a model.

Each is the rule of the dimension it is named after (arXiv:2503.21755; `rlvid.evaluation.vbench2`),
with its questions answered exactly: what moves how is told by simulated clips, what breaks a law
by the laws the world was drawn with. What a rule needs of the caption comes from its facts, so a
caption of another kind is excluded (NaN), as VBench-2.0 excludes what it cannot judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rlvid.data.tiny_world.grammar import ATTRIBUTES
from rlvid.data.tiny_world.scene import GRAVITY, GROUND_Y
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.critics import laws
from rlvid.rewards.critics.adherence import (
    camera_score,
    colour_score,
    object_score,
    path_scores,
)
from rlvid.rewards.critics.laws import World
from rlvid.rewards.critics.objects import ObjectClip
from rlvid.rewards.critics.world_dimensions_change import (
    dynamic_attribute,
    has_change,
    has_order,
    motion_order,
)
from rlvid.rewards.critics.world_dimensions_diversity import WorldDiversity
from rlvid.rewards.critics.world_dimensions_sight import Seen, look
from rlvid.rewards.critics.world_dimensions_views import camera_moves, multi_view_consistency

__all__ = ["RULES", "Rule", "WorldDimension", "WorldDimensionName", "WorldDiversity"]

WorldDimensionName = Literal[
    "mechanics",
    "motion_rationality",
    "instance_preservation",
    "dynamic_spatial_relationship",
    "dynamic_attribute",
    "motion_order",
    "camera_motion",
    "multi_view_consistency",
    "composition",
]
KEPT = 0.5
"""Value above which a law counts as kept; all true clips that were tried keep every law."""
MECHANICS = (laws.gravity, laws.energy, laws.momentum, laws.solidity)
INSTANCE = (laws.permanence, laws.unity, laws.identity)
PRESERVED = 0.75
"""The same for INSTANCE: what is away for a quarter of the clip still keeps .58 of permanence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one dimension is decided."""

    value: Callable[[Seen], float]
    """In [0, 1]; NaN excludes the clip."""
    claims: tuple[str, ...]
    """Breakages of the tiny world that it must tell from true clips."""
    judges: Callable[[Seen], bool] | None = None
    """Whether the caption is of a kind that can be judged; None judges all."""
    needs_object: bool = True
    """A clip in which no object is seen has 0 without asking `value`."""


def _laws_kept(
    seen: Seen, chosen: Sequence[Callable[[ObjectClip, World], float]], bar: float
) -> list[bool]:
    world = World(fps=seen.fps, gravity=GRAVITY, ground_y=GROUND_Y)
    return [law(seen.sight.objects, world) > bar for law in chosen]


def _shows_best(seen: Seen, name: str, score: Callable[[str], float]) -> float:
    """1 where the value the caption asks for is the one the clip shows best."""
    return float(max(ATTRIBUTES[name], key=score) == seen.facts[name])


def _mechanics(seen: Seen) -> float:
    """Share of four laws kept: gravity, energy, momentum, solidity; the gate is that it moves."""
    return float(np.mean(_laws_kept(seen, MECHANICS, KEPT)))


def _motion_rationality(seen: Seen) -> float:
    """All or nothing: the motion is the one asked for, and no other is nearer."""

    def score(value: str) -> float:
        return path_scores(seen.clip, {**seen.facts, "motion": value}, seen.fps)[0]

    return _shows_best(seen, "motion", score)


def _instance_preservation(seen: Seen) -> float:
    """0 when anything appears, vanishes, fuses, splits or changes its colour."""
    return float(all(_laws_kept(seen, INSTANCE, PRESERVED)))


def _spatial(seen: Seen) -> float:
    """The object ends on the side of its start that was asked for, by its path."""

    def score(value: str) -> float:
        return path_scores(seen.clip, {**seen.facts, "direction": value}, seen.fps)[1]

    return _shows_best(seen, "direction", score)


def _camera(seen: Seen) -> float:
    """The label of the camera's motion is the one asked for."""
    return _shows_best(seen, "camera", lambda value: camera_score(seen.clip, value, seen.fps))


def _composition(seen: Seen) -> float:
    """Share of the items that are there: the shape, and its colour."""
    shape = _shows_best(seen, "object", lambda value: object_score(seen.clip, value))
    colour = _shows_best(seen, "colour", lambda value: colour_score(seen.clip, value))
    return (shape + colour) / 2.0


RULES: Mapping[WorldDimensionName, Rule] = {
    "mechanics": Rule(
        value=_mechanics,
        claims=("reversed_gravity", "hover", "energy_gain", "teleport", "sink", "through_wall"),
    ),
    "motion_rationality": Rule(value=_motion_rationality, claims=("wrong_motion",)),
    "instance_preservation": Rule(
        value=_instance_preservation,
        claims=("vanish", "appear", "split", "merge", "colour_swap"),
    ),
    "dynamic_spatial_relationship": Rule(value=_spatial, claims=("wrong_direction",)),
    "dynamic_attribute": Rule(
        value=dynamic_attribute,
        claims=("wrong_motion", "hover", "through_wall", "still"),
        judges=has_change,
    ),
    "motion_order": Rule(
        value=motion_order,
        claims=("reversed_time", "shuffle", "wrong_motion", "through_wall", "hover"),
        judges=has_order,
    ),
    "camera_motion": Rule(value=_camera, claims=("wrong_camera",), needs_object=False),
    "multi_view_consistency": Rule(
        value=multi_view_consistency,
        claims=("sliding_posts", "warp"),
        judges=camera_moves,
        needs_object=False,
    ),
    "composition": Rule(value=_composition, claims=("wrong_object", "wrong_colour")),
}


class WorldDimension:
    """One dimension of a clip of the tiny world, in [0, 1].

    Meant for evaluation: its steps make it a poor reward. Sees what its rule names and is blind to
    everything else; a clip in which no object is seen has 0 in each but those of the camera, and
    one whose caption its rule does not judge has NaN.
    """

    BLIND_TO = ("everything its rule does not name",)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        dimension: WorldDimensionName = "mechanics"
        fps: int = 8
        """Frames a second of the clips."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._rule = RULES[config.dimension]
        self.clip_spec = ClipSpec(fps=config.fps, min_frames=8)
        self.CLAIMS = self._rule.claims

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] and B captions of the tiny world -> [B] float32; NaN is excluded."""
        pairs = zip(videos, prompts, strict=True)
        return torch.tensor([self._one(look(v, p, self._config.fps)) for v, p in pairs])

    def _one(self, seen: Seen) -> float:
        rule = self._rule
        if rule.judges is not None and not rule.judges(seen):
            return math.nan
        if rule.needs_object and not seen.sight.has_object:
            return 0.0
        return rule.value(seen)
