"""Breakages of what is drawn: objects that appear, divide, sink or change colour, posts that slide.

They need two drawings of one scene put together. T frames, H W pixels; lengths in world px.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from rlvid.data.tiny_world.draw import draw
from rlvid.data.tiny_world.grammar import ATTRIBUTES
from rlvid.data.tiny_world.scene import GROUND_Y, WORLD_SIZE, Scene
from rlvid.data.tiny_world.simulate import Track, in_view, simulate

Frames = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Rng = np.random.Generator

SPLIT_SPEED = 6.0
"""px / s at which each piece leaves the middle."""


def appear(scene: Scene, track: Track, fps: float, rng: Rng) -> Track:
    """Be there from a frame of the second quarter on, and not before."""
    first = int(rng.integers(4, track.num_frames // 2))
    visible = track.visible.copy()
    visible[:first] = False
    return replace(track, visible=visible)


def wrong_gravity(scene: Scene, track: Track, fps: float, rng: Rng) -> Track:
    """Fall at 0.3 to 0.5 or at 1.8 to 2.5 times the gravity of this world."""
    low, high = (0.3, 0.5) if rng.random() < 0.5 else (1.8, 2.5)
    return with_gravity(scene, track, fps, float(rng.uniform(low, high)))


def with_gravity(scene: Scene, track: Track, fps: float, factor: float) -> Track:
    """Return the motion of the same start under `factor` times the gravity.

    An upward throw is scaled so that the object still reaches the same height.
    """
    across, down = scene.velocity
    throw = down * np.sqrt(factor)
    changed = replace(scene, gravity=scene.gravity * factor, velocity=(across, float(throw)))
    return simulate(changed, track.num_frames, fps)


def through_wall(scene: Scene, track: Track, fps: float, rng: Rng) -> Track:
    """Go on where the wall stands, as if it were air."""
    assert scene.wall_x is not None, "offered for collisions only"
    moved = simulate(replace(scene, wall_x=None), track.num_frames, fps)
    return replace(moved, visible=in_view(moved.positions, moved.camera_offset, scene))


def composed(pictures: list[Frames], background: Frames) -> Frames:
    """Lay the objects of several drawings of one background over each other, the last on top."""
    result = background.copy()
    for picture in pictures:
        drawn = (picture != background).any(axis=3)
        result[drawn] = picture[drawn]
    return result


def _empty(track: Track) -> Track:
    return replace(track, visible=np.zeros_like(track.visible))


def sink(scene: Scene, track: Track, fps: float, rng: Rng, height: int, width: int) -> Frames:
    """Go down into the ground by 60 to 90 % of its height, before the ground or hidden by it."""
    first = int(rng.integers(track.num_frames // 2, track.num_frames - 5))
    depth = 2 * scene.half_height * rng.uniform(0.6, 0.9)
    ramp = np.clip((np.arange(track.num_frames) - first) / 3.0, 0.0, 1.0)
    positions = track.positions.copy()
    positions[:, 1] += depth * ramp
    frames = draw(replace(track, positions=positions), scene, height, width)
    if rng.random() < 0.5:
        ground = round(GROUND_Y * height / WORLD_SIZE)
        frames[:, ground:] = draw(_empty(track), scene, height, width)[:, ground:]
    return frames


def split(scene: Scene, track: Track, fps: float, rng: Rng, height: int, width: int) -> Frames:
    """Become two pieces of half the area that part sideways."""
    first = int(rng.integers(4, track.num_frames // 2))
    after = np.maximum(np.arange(track.num_frames) - first + 1, 0) / fps
    return _in_pieces(scene, track, after, height, width)


def merge(scene: Scene, track: Track, fps: float, rng: Rng, height: int, width: int) -> Frames:
    """Two pieces of half the area come together and are one from then on."""
    last = int(rng.integers(track.num_frames // 2, track.num_frames - 4))
    before = np.maximum(last - np.arange(track.num_frames), 0) / fps
    return _in_pieces(scene, track, before, height, width)


def _in_pieces(scene: Scene, track: Track, apart_s: Floats, height: int, width: int) -> Frames:
    """Draw two halves at each frame whose `apart_s` [T], seconds from the whole, is positive."""
    whole = draw(track, scene, height, width)
    small = replace(scene, half_height=scene.half_height / np.sqrt(2.0))
    pictures = []
    for side in (-1.0, 1.0):
        positions = track.positions.copy()
        positions[:, 1] += scene.half_height - small.half_height
        gap = np.minimum(small.half_width + SPLIT_SPEED * apart_s, 9.0)
        positions[:, 0] += side * gap
        pictures.append(draw(replace(track, positions=positions), small, height, width))
    pieces = composed(pictures, draw(_empty(track), scene, height, width))
    return np.asarray(np.where((apart_s > 0)[:, None, None, None], pieces, whole))


def colour_swap(
    scene: Scene, track: Track, fps: float, rng: Rng, height: int, width: int
) -> Frames:
    """Change to another colour between two frames of the middle third, for good."""
    count = track.num_frames
    others = [name for name in ATTRIBUTES["colour"] if name != scene.facts["colour"]]
    facts = {**scene.facts, "colour": str(rng.choice(others))}
    first = int(rng.integers(count // 3, 2 * count // 3))
    frames = draw(track, scene, height, width)
    frames[first:] = draw(track, replace(scene, facts=facts), height, width)[first:]
    return frames


def sliding_posts(
    scene: Scene, track: Track, fps: float, rng: Rng, height: int, width: int
) -> Frames:
    """Let the posts slide along the ground by 5 to 8 px, as if another camera filmed them."""
    travel = rng.choice((-1.0, 1.0)) * rng.uniform(5.0, 8.0)
    drift = travel * np.linspace(-0.5, 0.5, track.num_frames)
    empty, bare = _empty(track), replace(scene, wall_x=None)
    moved = draw(replace(empty, camera_offset=track.camera_offset + drift), bare, height, width)
    ground = round(GROUND_Y * height / WORLD_SIZE)
    true, still = draw(track, scene, height, width), draw(empty, bare, height, width)
    moved[:, ground:] = still[:, ground:]
    drawn = (true != still).any(axis=3)
    moved[drawn] = true[drawn]
    return moved
