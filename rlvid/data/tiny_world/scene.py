"""From facts and a seed to the physical parameters of one clip.

World units are pixels of a 32 x 32 clip: x to the right, y down, the still camera sees [0, 32].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlvid.data.tiny_world.grammar import check_facts
from rlvid.seeds import derive_seed

WORLD_SIZE = 32.0
"""Side of the view."""
GROUND_Y = 27.0
"""Top of the ground band."""
GRAVITY = 48.0
"""px / s^2, downwards; the same in every scene, so that a checker can measure it."""
PAN_SPEED = 4.0
"""px / s: 8 px over a clip of two seconds."""
CLIP_SECONDS = 2.0
"""Duration the speeds are chosen for: the object stays in view this long."""
WALL_HALF_WIDTH = 2.0
WALL_HEIGHT = 12.0
TRIANGLE_WIDTH = 1.15
"""Half the base over half the height: a triangle fills half its box and would look small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything the simulation and the drawing need; no randomness is left after it."""

    facts: Mapping[str, str]
    seed: int
    position: tuple[float, float]
    """Start of the centre of the object's bounding box, px."""
    velocity: tuple[float, float]
    """px / s at the first frame."""
    half_height: float
    """Half the height of the object, px: the radius of a ball, half the side of a box."""
    gravity: float
    """px / s^2, positive is down."""
    ground_restitution: float
    """Speed after over speed before a bounce on the ground."""
    wall_restitution: float
    friction: float
    """Coefficient between object and ground."""
    wall_x: float | None
    """Centre of the grey wall block, None without one."""
    camera_speed: float
    """px / s, positive when the camera pans right."""

    @property
    def half_width(self) -> float:
        wide = TRIANGLE_WIDTH if self.facts["object"] == "triangle" else 1.0
        return self.half_height * wide

    @property
    def rest_y(self) -> float:
        """Height of the centre when the object lies on the ground."""
        return GROUND_Y - self.half_height


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    """How one motion is drawn: (low, high) of each number."""

    drop: tuple[float, float]
    """Height of the start above rest, px."""
    speed: tuple[float, float]
    """Horizontal, px / s."""
    throw: tuple[float, float]
    """Upward speed at the start, px / s."""
    restitution: float
    friction: float


_MOTIONS: Mapping[str, _Range] = {
    "falls": _Range(drop=(15, 18), speed=(4, 5), throw=(0, 0), restitution=0.35, friction=0.0),
    "bounces": _Range(drop=(7, 10), speed=(6.5, 7.5), throw=(0, 0), restitution=0.9, friction=0.0),
    "rolls": _Range(drop=(0, 0), speed=(6.5, 7.5), throw=(0, 0), restitution=0.0, friction=0.01),
    "flies": _Range(drop=(0, 0), speed=(6.5, 7.5), throw=(37, 41), restitution=0.3, friction=0.0),
    "collides": _Range(drop=(0, 0), speed=(10, 11.2), throw=(0, 0), restitution=0.0, friction=0.0),
}

_CAMERA_SENSE: Mapping[str, float] = {"still": 0.0, "pans left": -1.0, "pans right": 1.0}


def sample_scene(facts: Mapping[str, str], seed: int) -> Scene:
    """Draw the physical parameters of a clip; the same facts and seed give the same scene.

    The object stays in view for `CLIP_SECONDS` whatever the camera does: with an opposite pan
    its centre has 16 px to move in, and no motion is faster than that allows.
    """
    check_facts(facts)
    rng = np.random.default_rng(derive_seed(seed, "tiny_world", *(facts[k] for k in sorted(facts))))
    motion = _MOTIONS[facts["motion"]]
    sense = 1.0 if facts["direction"] == "right" else -1.0
    speed = float(rng.uniform(*motion.speed))
    half_height = float(rng.uniform(3.7, 4.2))
    drop = float(rng.uniform(*motion.drop))
    throw = float(rng.uniform(*motion.throw))
    middle = WORLD_SIZE / 2
    wall_x = None
    if facts["motion"] == "collides":
        start = middle - sense * float(rng.uniform(7.0, 7.8))
        wall_x = middle + sense * float(rng.uniform(9.5, 10.5))
    else:
        slack = max(0.0, 16.0 - speed * CLIP_SECONDS)
        jitter = float(rng.uniform(-0.5, 0.5)) * slack
        start = middle - sense * speed * CLIP_SECONDS / 2 + jitter
    return Scene(
        facts=dict(facts),
        seed=seed,
        position=(start, GROUND_Y - half_height - drop),
        velocity=(sense * speed, -throw),
        half_height=half_height,
        gravity=GRAVITY,
        ground_restitution=motion.restitution,
        wall_restitution=0.9,
        friction=motion.friction,
        wall_x=wall_x,
        camera_speed=PAN_SPEED * _CAMERA_SENSE[facts["camera"]],
    )
