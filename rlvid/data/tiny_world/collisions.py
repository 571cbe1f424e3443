"""Two objects that meet on the ground, or fall side by side, and the ways in which that can break.

The objects slide without friction and do not turn, so that along the ground momentum is kept
exactly. Masses are areas: what looks larger is heavier. Lengths in world px, see `scene`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pymunk
import torch
from torch import Tensor

from rlvid.data.tiny_world.breakages_objects import composed
from rlvid.data.tiny_world.draw import draw
from rlvid.data.tiny_world.scene import GRAVITY, GROUND_Y, Scene
from rlvid.data.tiny_world.simulate import SUBSTEPS, Track, camera_path, in_view, simulate
from rlvid.seeds import derive_seed

Floats = npt.NDArray[np.float64]
Frames = npt.NDArray[np.uint8]

COLLISION_BREAKAGES: tuple[str, ...] = (
    "pass_through",
    "momentum_gain",
    "energy_gain",
    "vanish_one",
    "appear_one",
    "merge_two",
    "swap_colours",
    "float_one",
)
"""Ways to break such a clip; the first three and the merging need a meeting, all others do not."""
_NEEDS_MEETING = ("pass_through", "momentum_gain", "energy_gain", "merge_two")
_FAR_HUES = (("red", "green"), ("red", "blue"), ("orange", "blue"), ("yellow", "purple"),
             ("green", "purple"), ("orange", "purple"), ("yellow", "blue"))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two objects before they move."""

    scenes: tuple[Scene, Scene]
    restitution: float
    """Speed of parting over speed of approach."""
    meets: bool
    """False: they fall side by side."""

    @property
    def masses(self) -> tuple[float, float]:
        """Areas, world px^2."""
        return tuple(  # type: ignore[return-value]
            s.half_height**2 * (np.pi if s.facts["object"] == "ball" else 4.0) for s in self.scenes
        )

    @property
    def text(self) -> str:
        """One sentence of what the clip shows."""
        names = [f"a {s.facts['colour']} {s.facts['object']}" for s in self.scenes]
        verb = "collide" if self.meets else "fall side by side"
        return f"{names[0]} and {names[1]} {verb}".replace("a orange", "an orange")


def sample_pair(seed: int, *, meets: bool | None = None) -> Pair:
    """Draw a pair; the same seed gives the same pair. `meets` None leaves it to the seed."""
    rng = np.random.default_rng(derive_seed(seed, "tiny_world", "pair"))
    if meets is None:
        meets = bool(rng.random() < 0.75)
    colours = list(_FAR_HUES[int(rng.integers(len(_FAR_HUES)))])
    rng.shuffle(colours)
    kinds = [str(rng.choice(("ball", "box"))) for _ in range(2)]
    sizes = rng.uniform(2.5, 3.6, size=2)
    if kinds == ["ball", "ball"]:
        # Unequal balls on one ground would push each other up and down.
        sizes[1] = sizes[0]
    camera = float(rng.choice((0.0, 0.0, -2.0, 2.0)))
    left, right = rng.uniform(8.0, 9.0), 32.0 - rng.uniform(8.0, 9.0)
    if meets:
        speeds = _meeting_speeds(rng)
        drops = np.zeros(2)
    else:
        speeds = (float(rng.uniform(-1.0, 1.5)), float(rng.uniform(-1.5, 1.0)))
        drops = rng.uniform(10.0, 16.0, size=2)
    scenes = []
    for n, x in enumerate((left, right)):
        facts = {"object": kinds[n], "colour": colours[n], "motion": "falls", "camera": "still"}
        scenes.append(
            Scene(
                facts={**facts, "direction": "right" if n == 0 else "left"},
                seed=seed,
                position=(float(x), GROUND_Y - float(sizes[n]) - float(drops[n])),
                velocity=(speeds[n], 0.0),
                half_height=float(sizes[n]),
                gravity=GRAVITY,
                ground_restitution=0.35,
                wall_restitution=1.0,
                friction=0.0,
                wall_x=None,
                camera_speed=camera,
            )
        )
    return Pair(
        scenes=(scenes[0], scenes[1]), restitution=float(rng.uniform(0.6, 0.95)), meets=meets
    )


def _meeting_speeds(rng: np.random.Generator) -> tuple[float, float]:
    """Both towards each other, or one at rest; the gap of about 9 px closes in about 0.9 s."""
    closing = float(rng.uniform(9.0, 11.0))
    share = float(rng.choice((0.0, 1.0, rng.uniform(0.3, 0.7))))
    return share * closing, -(1.0 - share) * closing


def simulate_pair(
    pair: Pair,
    num_frames: int,
    fps: float,
    *,
    restitution: float | None = None,
    boost: float = 0.0,
) -> tuple[Track, Track]:
    """Return the tracks of both objects.

    Args:
        restitution: instead of the pair's; above 1 the meeting makes energy, and below 0 the
            objects ignore each other.
        boost: px / s added to both velocities at the meeting, momentum from nothing.
    """
    bounce = pair.restitution if restitution is None else restitution
    if not pair.meets or bounce < 0:
        first, second = (simulate(s, num_frames, fps) for s in pair.scenes)
        return first, second
    space, bodies = _space(pair, bounce)
    met = [False]

    def separate(arbiter: pymunk.Arbiter, space: pymunk.Space, data: object) -> None:
        if not met[0]:
            for body in bodies:
                body.velocity = (body.velocity.x + boost, 0.0)
        met[0] = True

    space.on_collision(1, 1, separate=separate)
    positions = np.empty((2, num_frames, 2))
    for frame in range(num_frames):
        for _ in range(SUBSTEPS if frame else 0):
            space.step(1.0 / (fps * SUBSTEPS))
        positions[:, frame, 0] = [body.position.x for body in bodies]
        positions[:, frame, 1] = [scene.position[1] for scene in pair.scenes]
    first, second = (
        _track(scene, path, fps) for scene, path in zip(pair.scenes, positions, strict=True)
    )
    return first, second


def _space(pair: Pair, restitution: float) -> tuple[pymunk.Space, list[pymunk.Body]]:
    """Return a space without gravity: on the ground only what happens sideways matters."""
    space = pymunk.Space()
    space.collision_slop = 0.01
    bodies = []
    for scene, mass in zip(pair.scenes, pair.masses, strict=True):
        body = pymunk.Body(mass, float("inf"))
        body.position = (scene.position[0], 0.0)
        body.velocity = (scene.velocity[0], 0.0)
        half = scene.half_height
        shape: pymunk.Shape
        if scene.facts["object"] == "ball":
            shape = pymunk.Circle(body, half)
        else:
            shape = pymunk.Poly(body, [(-half, -half), (half, -half), (half, half), (-half, half)])
        shape.elasticity = float(np.sqrt(restitution))
        shape.friction = 0.0
        shape.collision_type = 1
        space.add(body, shape)
        bodies.append(body)
    return space, bodies


def _track(scene: Scene, positions: Floats, fps: float) -> Track:
    count = len(positions)
    camera = camera_path(scene, count, fps)
    return Track(
        positions=positions,
        velocities=np.gradient(positions, 1.0 / fps, axis=0),
        angles=np.zeros(count),
        camera_offset=camera,
        ground_contact=positions[:, 1] >= scene.rest_y - 0.05,
        wall_contact=np.zeros(count, dtype=np.bool_),
        visible=in_view(positions, camera, scene),
    )


def meeting_frame(tracks: tuple[Track, Track]) -> int:
    """Return the frame at which the objects are nearest to each other."""
    gap = np.abs(tracks[0].positions[:, 0] - tracks[1].positions[:, 0])
    return int(gap.argmin())


def render_pair(
    seed: int,
    *,
    num_frames: int = 17,
    height: int = 32,
    width: int = 32,
    fps: float = 8,
    breakage: str | None = None,
) -> tuple[Tensor, Pair]:
    """Return a clip, [T, 3, H, W] float32 in [0, 1], and the pair that it shows.

    The same arguments give the same pixels. Raises ValueError for an unknown breakage.
    """
    if breakage is not None and breakage not in COLLISION_BREAKAGES:
        raise ValueError(
            f"render_pair: unknown breakage: expected one of {', '.join(COLLISION_BREAKAGES)}, "
            f"got {breakage!r}."
        )
    pair = sample_pair(seed, meets=True if breakage in _NEEDS_MEETING else None)
    rng = np.random.default_rng(derive_seed(seed, "pair breakage", str(breakage)))
    tracks = _broken_tracks(pair, breakage, num_frames, fps, rng)
    frames = _draw_pair(pair, tracks, height, width)
    first = max(2, min(meeting_frame(tracks), num_frames - 6))
    if breakage == "swap_colours":
        frames[first:] = _draw_pair(_swapped(pair), tracks, height, width)[first:]
    elif breakage == "merge_two":
        frames[first:] = _draw_merged(pair, tracks, height, width)[first:]
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div_(255.0).contiguous(), pair


def _broken_tracks(
    pair: Pair, breakage: str | None, num_frames: int, fps: float, rng: np.random.Generator
) -> tuple[Track, Track]:
    if breakage == "pass_through":
        return simulate_pair(pair, num_frames, fps, restitution=-1.0)
    if breakage == "momentum_gain":
        boost = float(rng.choice((-1.0, 1.0)) * rng.uniform(6.0, 9.0))
        return simulate_pair(pair, num_frames, fps, boost=boost)
    if breakage == "energy_gain":
        return simulate_pair(pair, num_frames, fps, restitution=float(rng.uniform(1.8, 2.4)))
    tracks = list(simulate_pair(pair, num_frames, fps))
    one = int(rng.integers(2))
    frame = int(rng.integers(4, num_frames // 2))
    if breakage in ("vanish_one", "appear_one"):
        visible = tracks[one].visible.copy()
        visible[np.s_[frame:] if breakage == "vanish_one" else np.s_[:frame]] = False
        tracks[one] = replace(tracks[one], visible=visible)
    if breakage == "float_one":
        positions = tracks[one].positions.copy()
        rise = np.clip(np.arange(num_frames) - frame, 0, None) / fps * rng.uniform(8.0, 12.0)
        positions[:, 1] = np.maximum(positions[:, 1] - rise, pair.scenes[one].half_height)
        tracks[one] = replace(tracks[one], positions=positions)
    return tracks[0], tracks[1]


def _swapped(pair: Pair) -> Pair:
    first, second = pair.scenes
    changed = [
        replace(a, facts={**a.facts, "colour": b.facts["colour"]})
        for a, b in ((first, second), (second, first))
    ]
    return replace(pair, scenes=(changed[0], changed[1]))


def _draw_pair(pair: Pair, tracks: tuple[Track, Track], height: int, width: int) -> Frames:
    hidden = replace(tracks[0], visible=np.zeros_like(tracks[0].visible))
    background = draw(hidden, pair.scenes[0], height, width)
    pictures = [draw(t, s, height, width) for t, s in zip(tracks, pair.scenes, strict=True)]
    return composed(pictures, background)


def _draw_merged(pair: Pair, tracks: tuple[Track, Track], height: int, width: int) -> Frames:
    """Draw one object of both areas at their common centre, in the first one's colour."""
    masses = np.array(pair.masses)
    first, second = pair.scenes
    kind = 1.0 if first.facts["object"] == "box" else np.pi / 4.0
    half = float(np.sqrt(masses.sum() / (4.0 * kind)))
    whole = replace(first, half_height=half)
    x = (
        masses[0] * tracks[0].positions[:, 0] + masses[1] * tracks[1].positions[:, 0]
    ) / masses.sum()
    positions = np.stack([x, np.full_like(x, whole.rest_y)], axis=1)
    return draw(replace(tracks[0], positions=positions), whole, height, width)
