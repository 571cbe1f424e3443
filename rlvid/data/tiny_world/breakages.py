"""Clips broken on purpose, each in one known way that a person sees at once.

They are what a reward is tested with: a useful reward tells a true clip from each of them. A
breakage changes one stage of the rendering: the facts (the clip shows something else than its
caption says), the track (the motion breaks physics), the drawing (the object breaks) or the
finished frames (the video breaks).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from rlvid.data.tiny_world import breakages_objects as objects
from rlvid.data.tiny_world import breakages_picture as picture
from rlvid.data.tiny_world.grammar import ATTRIBUTES, check_facts
from rlvid.data.tiny_world.scene import GROUND_Y, WORLD_SIZE, Scene
from rlvid.data.tiny_world.simulate import Track, in_view, simulate

Facts = Mapping[str, str]
Frames = npt.NDArray[np.uint8]
Rng = np.random.Generator

MIN_FRAMES = 13
"""A shorter clip has no room to show every breakage."""

_ALL = ATTRIBUTES["motion"]
_AIRBORNE = ("falls", "bounces", "flies")


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakage:
    """One way to break a clip; exactly one of the four functions is there."""

    kind: Literal["physics", "object", "temporal", "picture", "adherence"]
    motions: tuple[str, ...] = _ALL
    """Values of `motion` where it can be seen; refused for the others."""
    change_facts: Callable[[Facts, Rng], Facts] | None = None
    change_track: Callable[[Scene, Track, float, Rng], Track] | None = None
    """(scene, true track, fps, rng) -> broken track."""
    redraw: Callable[[Scene, Track, float, Rng, int, int], Frames] | None = None
    """(scene, true track, fps, rng, height, width) -> frames."""
    change_frames: Callable[[Frames, Rng], Frames] | None = None
    """[T, H, W, 3] -> [T, H, W, 3]."""


def _moved(scene: Scene, track: Track, positions: npt.NDArray[np.float64], fps: float) -> Track:
    """Return the track along other positions; velocities are those of the new path."""
    velocities = np.gradient(positions, 1.0 / fps, axis=0)
    ground = positions[:, 1] >= scene.rest_y - 0.05
    return replace(
        track,
        positions=positions,
        velocities=velocities,
        ground_contact=ground,
        visible=in_view(positions, track.camera_offset, scene),
    )


def reverse_gravity(scene: Scene, track: Track, fps: float, rng: Rng) -> Track:
    """Fall up: the path upside down, between the ground and the top of the view."""
    positions = track.positions.copy()
    positions[:, 1] = scene.rest_y + scene.half_height - positions[:, 1]
    return _moved(scene, track, positions, fps)


def teleport(scene: Scene, track: Track, fps: float, rng: Rng) -> Track:
    """Jump by 9 px or more between two frames in the middle, staying in view to the end."""
    count = track.num_frames
    for _ in range(2000):
        frame = int(rng.integers(4, count - 4))
        jump = rng.uniform((-13.0, -11.0), (13.0, 11.0))
        positions = track.positions.copy()
        positions[frame:] += jump
        step = positions[frame] - positions[frame - 1]
        if np.hypot(*step) >= 9.0 and _wholly_in_view(scene, track, positions):
            return _moved(scene, track, positions, fps)
    raise ValueError(
        f"teleport: no jump keeps the {scene.facts['object']} in view for {count} frames: expected "
        "a clip of about two seconds. Use fewer frames or a higher fps."
    )


def _wholly_in_view(scene: Scene, track: Track, positions: npt.NDArray[np.float64]) -> bool:
    x, y = positions[:, 0] - track.camera_offset, positions[:, 1]
    wide, high = scene.half_width, scene.half_height
    inside_x = np.all((x >= wide - 1.0) & (x <= WORLD_SIZE - wide + 1.0))
    inside_y = np.all((y >= high - 1.0) & (y <= GROUND_Y - high + 0.1))
    return bool(inside_x and inside_y and _clear_of_wall(scene, positions))


def _clear_of_wall(scene: Scene, positions: npt.NDArray[np.float64]) -> bool:
    """A jump into the wall would hide part of the object and look like another breakage."""
    if scene.wall_x is None:
        return True
    start_side = np.sign(scene.position[0] - scene.wall_x)
    gap = start_side * (positions[:, 0] - scene.wall_x)
    return bool(np.all(gap >= scene.half_width + 1.9))


def vanish(scene: Scene, track: Track, fps: float, rng: Rng) -> Track:
    """Disappear in mid clip: for good, or for about a third of the clip."""
    count = track.num_frames
    first = int(rng.integers(4, count // 2))
    last = count if rng.random() < 0.5 else first + count // 3
    visible = track.visible.copy()
    visible[first:last] = False
    return replace(track, visible=visible)


def gain_energy(scene: Scene, track: Track, fps: float, rng: Rng) -> Track:
    """Bounce higher each time, leave the wall far faster than it came, or roll ever faster."""
    if scene.facts["motion"] == "rolls":
        progress = np.linspace(0.0, 1.0, track.num_frames)[:, None] ** 3
        path = track.positions[-1] - track.positions[0]
        return _moved(scene, track, track.positions[0] + progress * path, fps)
    drop = scene.rest_y - scene.position[1]
    room = scene.rest_y - scene.half_height
    higher = float(np.sqrt(room / drop)) if drop > 0 else 1.0
    broken = replace(scene, ground_restitution=higher, wall_restitution=2.0)
    return simulate(broken, track.num_frames, fps)


def hover(scene: Scene, track: Track, fps: float, rng: Rng) -> Track:
    """Stop dead in mid air and stay there to the end."""
    height = scene.rest_y - track.positions[:, 1]
    count = track.num_frames
    frames = [n for n in range(2, count - 5) if height[n] >= 5.0]
    if not frames:
        raise ValueError(
            f"hover: the {scene.facts['object']} is never 5 px above the ground in {count} frames "
            f"at {fps} fps. Use a clip of about two seconds."
        )
    frame = int(rng.choice(frames))
    positions = track.positions.copy()
    positions[frame:] = positions[frame]
    return _moved(scene, track, positions, fps)


def flicker(frames: Frames, rng: Rng) -> Frames:
    """Brighten and darken frames in turn, by a fifth to a half, with a tint."""
    count = frames.shape[0]
    sign = np.where(np.arange(count) % 2 == rng.integers(2), 1.0, -1.0)
    strength = rng.uniform(0.2, 0.5, size=count)
    tint = rng.uniform(0.8, 1.0, size=(count, 1, 1, 3))
    gain = (1.0 + sign * strength)[:, None, None, None] * tint
    return np.clip(np.rint(frames * gain), 0, 255).astype(np.uint8)


def shake(frames: Frames, rng: Rng) -> Frames:
    """Shift every frame by a jump of its own, up to an eighth of the height."""
    reach = max(1, frames.shape[1] // 8)
    shaken = np.empty_like(frames)
    for index, frame in enumerate(frames):
        side = 1 if index % 2 else -1
        down, right = side * rng.integers(1, reach + 1), side * rng.integers(2, reach + 1)
        padded = np.pad(frame, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        top, left = reach - down, reach - right
        shaken[index] = padded[top : top + frame.shape[0], left : left + frame.shape[1]]
    return shaken


def warp(frames: Frames, rng: Rng) -> Frames:
    """Bend every frame by a wave of its own, so that shapes and horizon wobble."""
    _, height, width, _ = frames.shape
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    warped = np.empty_like(frames)
    for index, frame in enumerate(frames):
        phase = rng.uniform(0, 2 * np.pi, size=2)
        waves = rng.uniform(1.5, 2.5, size=2) * 2 * np.pi / height
        size = rng.uniform(0.06, 0.1, size=2) * height * rng.choice((-1.0, 1.0), size=2)
        y = rows + size[0] * np.sin(waves[0] * columns + phase[0])
        x = columns + size[1] * np.sin(waves[1] * rows + phase[1])
        nearest_y = np.clip(np.rint(y), 0, height - 1).astype(np.intp)
        nearest_x = np.clip(np.rint(x), 0, width - 1).astype(np.intp)
        warped[index] = frame[nearest_y, nearest_x]
    return warped


def shuffle(frames: Frames, rng: Rng) -> Frames:
    """Show the frames in a random order, neighbours a quarter of the clip apart on average."""
    count = frames.shape[0]
    while True:
        order = rng.permutation(count)
        if np.abs(np.diff(order)).mean() >= count / 4:
            return np.asarray(frames[order])


def freeze_and_jump(frames: Frames, rng: Rng) -> Frames:
    """Hold one frame for more than half the clip, then jump to where the clip is by then.

    The hold starts where the jump shows most: a rebound may come back to where it was frozen.
    """
    count = frames.shape[0]
    hold = count * 3 // 5
    starts = range(1, count - hold - 2)
    jumps = [np.abs(frames[n + hold].astype(int) - frames[n]).mean() for n in starts]
    start = starts[int(np.argmax(jumps))]
    frozen = frames.copy()
    frozen[start : start + hold] = frames[start]
    return frozen


def _other_value(key: str) -> Callable[[Facts, Rng], Facts]:
    """Return a change of the facts to another value of `key`."""

    def change(facts: Facts, rng: Rng) -> Facts:
        others = [value for value in ATTRIBUTES[key] if value != facts[key]]
        return {**facts, key: str(rng.choice(others))}

    return change


def change_motion(facts: Facts, rng: Rng) -> Facts:
    """Show a motion of another family: falling and bouncing look too much alike to be swapped."""
    family = ("falls", "bounces") if facts["motion"] in ("falls", "bounces") else (facts["motion"],)
    others = [value for value in ATTRIBUTES["motion"] if value not in family]
    return {**facts, "motion": str(rng.choice(others))}


BREAKAGES: Mapping[str, Breakage] = {
    "reversed_gravity": Breakage(kind="physics", motions=_AIRBORNE, change_track=reverse_gravity),
    "teleport": Breakage(kind="physics", change_track=teleport),
    "vanish": Breakage(kind="physics", change_track=vanish),
    "energy_gain": Breakage(
        kind="physics", motions=("bounces", "rolls", "collides"), change_track=gain_energy
    ),
    "hover": Breakage(kind="physics", motions=_AIRBORNE, change_track=hover),
    "flicker": Breakage(kind="temporal", change_frames=flicker),
    "shake": Breakage(kind="temporal", change_frames=shake),
    "warp": Breakage(kind="temporal", change_frames=warp),
    "shuffle": Breakage(kind="temporal", change_frames=shuffle),
    "freeze_and_jump": Breakage(kind="temporal", change_frames=freeze_and_jump),
    "wrong_colour": Breakage(kind="adherence", change_facts=_other_value("colour")),
    "wrong_object": Breakage(kind="adherence", change_facts=_other_value("object")),
    "wrong_direction": Breakage(kind="adherence", change_facts=_other_value("direction")),
    "wrong_motion": Breakage(kind="adherence", change_facts=change_motion),
    "wrong_camera": Breakage(kind="adherence", change_facts=_other_value("camera")),
    "appear": Breakage(kind="physics", change_track=objects.appear),
    "wrong_gravity": Breakage(
        kind="physics", motions=_AIRBORNE, change_track=objects.wrong_gravity
    ),
    "through_wall": Breakage(
        kind="physics", motions=("collides",), change_track=objects.through_wall
    ),
    "sink": Breakage(kind="object", motions=("falls", "rolls", "collides"), redraw=objects.sink),
    "split": Breakage(kind="object", redraw=objects.split),
    "merge": Breakage(kind="object", redraw=objects.merge),
    "colour_swap": Breakage(kind="object", redraw=objects.colour_swap),
    "over_exposed": Breakage(kind="picture", change_frames=picture.over_expose),
    "washed_out": Breakage(kind="picture", change_frames=picture.wash_out),
    "over_saturated": Breakage(kind="picture", change_frames=picture.over_saturate),
    "still": Breakage(kind="picture", change_frames=picture.hold_still),
    "grid_pattern": Breakage(kind="picture", change_frames=picture.add_grid),
    "blocky": Breakage(kind="picture", change_frames=picture.make_blocky),
    "blurred": Breakage(kind="picture", change_frames=picture.blur),
    "noise": Breakage(kind="picture", change_frames=picture.add_noise),
    "jitter": Breakage(kind="picture", change_frames=picture.jitter),
    "reversed_time": Breakage(
        kind="temporal", motions=("falls", "bounces"), change_frames=picture.play_backwards
    ),
    "sliding_posts": Breakage(kind="picture", redraw=objects.sliding_posts),
}


def breakages_for(facts: Facts) -> tuple[str, ...]:
    """Return the names of the breakages that can be seen in a clip of these facts."""
    check_facts(facts)
    return tuple(name for name, item in BREAKAGES.items() if facts["motion"] in item.motions)


def get_breakage(name: str, facts: Facts, num_frames: int) -> Breakage:
    """Return the breakage, or raise ValueError when it is unknown or could not be seen."""
    if name not in BREAKAGES:
        raise ValueError(
            f"breakage: unknown name: expected one of {', '.join(BREAKAGES)}, got {name!r}."
        )
    if name not in breakages_for(facts):
        raise ValueError(
            f"breakage {name!r}: cannot be seen: expected motion in {BREAKAGES[name].motions}, "
            f"got {facts['motion']!r}. `breakages_for(facts)` lists those that can."
        )
    if num_frames < MIN_FRAMES:
        raise ValueError(
            f"breakage {name!r}: clip too short: expected at least {MIN_FRAMES} frames, "
            f"got {num_frames}."
        )
    return BREAKAGES[name]
