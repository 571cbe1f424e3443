"""The path of the tiny world's object as events and states, in a clip and in simulated ones.

Both are read by the same functions, so what a caption implies is what its simulated clips show.
Lengths in world px, times in seconds. Letters: T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rlvid.data.tiny_world.scene import WALL_HALF_WIDTH, sample_scene
from rlvid.data.tiny_world.simulate import simulate
from rlvid.rewards.critics.laws import TOUCH
from rlvid.rewards.critics.tracking import Floats
from rlvid.rewards.critics.world_dimensions_sight import SURE, Seen

MOVE = 3.0
"""World px: the least way that is an event. A fall's own rebound has 2.2, a bounce 5.7."""
HIGHER = 0.5
"""World px above all before from which a rise is a climb; a rebound stays 1.3 below."""
LOW = 2.0
"""World px above rest up to which the object counts as on the ground."""
LEAST_SPEED = 2.0
"""World px / s below which it heads nowhere; the slowest of the world has 4."""
EXAMPLES = 32
"""Simulated clips that stand for a motion."""
EXAMPLE_SEED = 8_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Where the object was, NaN in frames that do not show it."""

    heights: Floats
    """[T] above rest."""
    gaps: Floats | None
    """[T] free space to the wall, negative inside it and beyond; None without a wall."""
    fps: float

    @property
    def window(self) -> int:
        """Frames of the first or last quarter: "at the start" and "at the end"."""
        return max(2, len(self.heights) // 4)


def path_in(seen: Seen) -> Path:
    """Return the path in a clip; a wall is looked for where the caption speaks of one."""
    unseen = seen.clip.confidence <= SURE
    return Path(
        heights=np.where(unseen, np.nan, seen.heights),
        gaps=_gaps_in(seen) if seen.facts["motion"] == "collides" else None,
        fps=seen.fps,
    )


def _gaps_in(seen: Seen) -> Floats | None:
    boxes, x = seen.sight.objects.obstacles, seen.clip.world[:, 0]
    if not boxes:
        return None
    wall = max(boxes, key=lambda box: (box.right - box.left) * (box.bottom - box.top))
    half_width = (wall.right - wall.left) / 2 + seen.sight.objects.tracks[0].half_width
    apart = x - (wall.left + wall.right) / 2
    return np.where(seen.clip.confidence <= SURE, np.nan, np.sign(apart[0]) * apart - half_width)


@lru_cache(maxsize=64)
def simulated_paths(motion: str, num_frames: int, fps: float) -> tuple[Path, ...]:
    """Return the true paths of clips of a motion; object, colour and camera do not matter."""
    facts = {"object": "ball", "colour": "red", "camera": "still"}
    facts |= {"motion": motion, "direction": "right"}
    paths = []
    for seed in range(EXAMPLE_SEED, EXAMPLE_SEED + EXAMPLES):
        scene = sample_scene(facts, seed)
        x, y = simulate(scene, num_frames, fps).positions.T
        gaps = None
        if scene.wall_x is not None:
            gaps = scene.wall_x - x - WALL_HALF_WIDTH - scene.half_width
        paths.append(Path(heights=scene.rest_y - y, gaps=gaps, fps=fps))
    return tuple(paths)


def events_of(path: Path) -> tuple[str, ...]:
    """Return what happens, in order.

    Of the height: "falls", "rebounds" (rises to less than it had), "climbs" (rises above all
    before) and at last "lands" (is on the ground to the end). Of a wall: "nears", "touches",
    "leaves". Moves of less than MOVE are none.
    """
    found = _height_events(path)
    if path.gaps is not None:
        found += _wall_events(path.gaps)
    return tuple(word for _, word in sorted(found, key=lambda event: event[0]))


def _height_events(path: Path) -> list[tuple[int, str]]:
    """(frame at its end, word) of every move up or down."""
    heights = path.heights
    found = []
    turns = turning_frames(heights)
    for start, stop in zip(turns[:-1], turns[1:], strict=True):
        if heights[stop] < heights[start]:
            found.append((stop, "falls"))
        else:
            highest = float(np.nanmax(heights[: start + 1]))
            found.append((stop, "climbs" if heights[stop] > highest + HIGHER else "rebounds"))
    if found and place(path, at_end=True) == "on the ground":
        found.append((len(heights), "lands"))
    return found


def _wall_events(gaps: Floats) -> list[tuple[int, str]]:
    """(frame at its end, word) of every move to or from the wall, and of touching it."""
    found = []
    reach = TOUCH + float(np.nanmax(np.abs(np.diff(gaps)), initial=0.0)) / 2
    turns = turning_frames(gaps)
    for start, stop in zip(turns[:-1], turns[1:], strict=True):
        if gaps[stop] > gaps[start]:
            found.append((stop, "leaves"))
            continue
        found.append((stop, "nears"))
        if gaps[stop] <= reach:
            found.append((stop, "touches"))
    return found


def turning_frames(values: Floats) -> list[int]:
    """Return where [T] values turn after moving by MOVE: start, turns, end; [] without a move."""
    turns: list[int] = []
    sense = 0
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return []
    low = high = int(known[0])
    for frame in known.tolist():
        low = frame if values[frame] < values[low] else low
        high = frame if values[frame] > values[high] else high
        if sense <= 0 and values[frame] - values[low] >= MOVE:
            turns.append(low)
            sense, high = 1, frame
        elif sense >= 0 and values[high] - values[frame] >= MOVE:
            turns.append(high)
            sense, low = -1, frame
    return [*turns, high if sense > 0 else low] if sense else []


def place(path: Path, *, at_end: bool) -> str | None:
    """ "in the air" or "on the ground", by all frames of the first or last quarter; None else."""
    heights = path.heights[-path.window :] if at_end else path.heights[: path.window]
    if (heights > LOW).all():
        return "in the air"
    return "on the ground" if (heights <= LOW).all() else None


def heading(path: Path, *, at_end: bool) -> str | None:
    """ "to the wall" or "from the wall", by the speed over the first or last quarter; None else."""
    if path.gaps is None:
        return None
    part = path.gaps[-path.window :] if at_end else path.gaps[: path.window]
    speed = float((part[-1] - part[0]) / (len(part) - 1)) * path.fps
    if abs(speed) >= LEAST_SPEED:
        return "from the wall" if speed > 0 else "to the wall"
    return None


STATES: Mapping[str, Callable[..., str | None]] = {"place": place, "heading": heading}
"""Attributes of the object that a motion may change."""
