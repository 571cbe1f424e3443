"""The dimensions of what happens over time: the order of events, and what is changed by them."""

from __future__ import annotations

from functools import lru_cache

from rlvid.rewards.critics.world_dimensions_path import (
    STATES,
    events_of,
    path_in,
    simulated_paths,
)
from rlvid.rewards.critics.world_dimensions_sight import Seen

ORDERED = ("falls", "bounces", "collides")
"""Motions that are events one after the other; rolling is one, and flying is told by its arc."""


def has_order(seen: Seen) -> bool:
    """Whether the caption tells of a sequence, of two events at least in a clip so long."""
    if seen.facts["motion"] not in ORDERED:
        return False
    orders = _orders(seen.facts["motion"], len(seen.video), seen.fps)
    return all(len(order) > 1 for order in orders)


def motion_order(seen: Seen) -> float:
    """All or nothing: the events of the clip are, in order, those of a simulated clip.

    Where VBench-2.0 excludes a video in which fewer than two actions are described, and gives 0 to
    a model that shows nothing else, a clip without the events has 0 here.
    """
    orders = _orders(seen.facts["motion"], len(seen.video), seen.fps)
    return float(events_of(path_in(seen)) in orders)


@lru_cache(maxsize=64)
def _orders(motion: str, num_frames: int, fps: int) -> frozenset[tuple[str, ...]]:
    return frozenset(events_of(path) for path in simulated_paths(motion, num_frames, fps))


def has_change(seen: Seen) -> bool:
    """Whether the caption implies a change: falling and hitting a wall do, in a whole clip."""
    return bool(_changes(seen.facts["motion"], len(seen.video), seen.fps))


def dynamic_attribute(seen: Seen) -> float:
    """All or nothing: the first frames show the object as it was, the last as it becomes.

    Falling takes it from "in the air" to "on the ground", a wall turns its heading. VBench-2.0's
    third question, whether it changes, follows from these two. What happens in between is not
    asked.
    """
    path = path_in(seen)
    changes = _changes(seen.facts["motion"], len(seen.video), seen.fps)
    return float(
        all(
            STATES[name](path, at_end=False) == before and STATES[name](path, at_end=True) == after
            for name, before, after in changes
        )
    )


@lru_cache(maxsize=64)
def _changes(motion: str, num_frames: int, fps: int) -> tuple[tuple[str, str, str], ...]:
    """(attribute, value at the start, value at the end) where all simulated clips agree."""
    paths = simulated_paths(motion, num_frames, fps)
    changes = []
    for name, state in STATES.items():
        found = {(state(path, at_end=False), state(path, at_end=True)) for path in paths}
        (before, after), *others = found
        if not others and before is not None and after is not None and before != after:
            changes.append((name, before, after))
    return tuple(changes)
