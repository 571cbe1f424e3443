"""Laws of motion for several objects, each of them a score of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rlvid.data.tiny_world.scene import GRAVITY, GROUND_Y
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.critics import laws
from rlvid.rewards.critics.blobs import Segmentation
from rlvid.rewards.critics.laws import World
from rlvid.rewards.critics.objects import ObjectClip, follow_objects
from rlvid.rewards.critics.tracking import Frames, to_frames

LawName = Literal[
    "all", "permanence", "unity", "identity", "gravity", "energy", "momentum", "solidity"
]

LAWS: Mapping[str, Callable[[ObjectClip, World], float]] = {
    "permanence": laws.permanence,
    "unity": laws.unity,
    "identity": laws.identity,
    "gravity": laws.gravity,
    "energy": laws.energy,
    "momentum": laws.momentum,
    "solidity": laws.solidity,
}
LAW_CLAIMS: Mapping[str, tuple[str, ...]] = {
    "permanence": ("vanish", "appear", "pair_vanish_one", "pair_appear_one"),
    "unity": ("split", "merge", "pair_merge_two"),
    "identity": ("colour_swap", "pair_swap_colours"),
    "gravity": ("reversed_gravity", "wrong_gravity", "hover", "pair_float_one"),
    "energy": ("energy_gain", "pair_energy_gain"),
    "momentum": ("teleport", "pair_momentum_gain"),
    "solidity": ("sink", "through_wall", "pair_pass_through"),
}
"""What each law must see when it is the only one."""


class PhysicsLawsCritic:
    """How well all objects of a clip keep seven laws of motion, in [0, 1].

    Objects are cut out by colour, or by what differs from the background, and followed. The score
    is the product of `permanence` (none appears or vanishes), `unity` (none splits or merges),
    `identity` (colours stay), `gravity` (free flight accelerates by g), `energy` (never rises, not
    at a bounce either), `momentum` (sideways constant, and shared where two meet) and `solidity`
    (nothing goes into the ground, an obstacle or another object). `config: {law: gravity}` scores
    one alone. A law that a clip has no occasion to break is 1.

    Gamed by: objects that lie still, and by nothing ever touching; pair it with adherence.
    """

    CLAIMS: tuple[str, ...] = tuple(claim for claims in LAW_CLAIMS.values() for claim in claims)
    GRADED: tuple[str, ...] = ("gravity_factor",)
    BLIND_TO = (
        "whether the motion is the one asked for",
        "turning and shape",
        "touching objects of one colour",
        "objects that pass behind each other in depth: it sees that as going through",
        "masses other than the visible area",
        "friction: losing speed is always allowed",
    )

    WORKING_BYTES = 105.0

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        law: LawName = "all"
        """The one law to score; "all" is their product."""
        fps: int = 8
        """Frames a second of the clips; gravity in frames depends on it."""
        gravity: float = GRAVITY
        """World px / s^2 downwards; the height of a clip is 32 world px."""
        ground_y: float | None = GROUND_Y
        """World px from the top; None takes the lowest point that an object reaches."""
        segmentation: Segmentation = "colour"
        """How objects are cut out: "colour" by saturation and hue, "background" by what differs
        from the still or panning background, whatever its colour."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._world = World(fps=config.fps, gravity=config.gravity, ground_y=config.ground_y)
        self.clip_spec = ClipSpec(fps=config.fps, min_frames=8)
        if config.law != "all":
            self.CLAIMS = LAW_CLAIMS[config.law]
            self.GRADED = ("gravity_factor",) if config.law == "gravity" else ()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] -> [B] float32; the prompts are not read."""
        key = "physics_laws" if self._config.law == "all" else self._config.law
        return torch.tensor([self.parts(to_frames(video))[key] for video in videos])

    def parts(self, frames: Frames) -> Mapping[str, float]:
        """Return the score "physics_laws" of [T, H, W, 3] and the value of each law.

        All are 0 for a clip in which no object is seen.
        """
        clip = follow_objects(frames, self._config.segmentation)
        if not clip.tracks:
            return dict.fromkeys(("physics_laws", *LAWS), 0.0)
        values = {name: law(clip, self._world) for name, law in LAWS.items()}
        return {"physics_laws": float(np.prod(list(values.values()))), **values}
