"""How long tasks take whose processes share the cores of one machine.

A process works on one core at most. Where more of them work than there are cores, each gets an
equal share, as Linux gives it. What a change of turn costs is not in it.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EPSILON = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one process does without a break."""

    role: str
    seconds: float
    """On a core of its own."""
    after: tuple[int, ...] = ()
    """Places of the tasks that have to be done before, each further to the front."""


def finish_s(tasks: Sequence[Task], processes: Mapping[str, int], num_cores: float) -> list[float]:
    """Return the seconds at which each task is done; of those that can begin, a role takes the
    first.

    Args:
        processes: of each role, which work at one task each.
        num_cores: that all of them share.
    """
    missing = [len(set(task.after)) for task in tasks]
    followers = defaultdict[int, list[int]](list)
    ready = {role: list[int]() for role in processes}
    for place, task in enumerate(tasks):
        for other in set(task.after):
            followers[other].append(place)
        if not task.after:
            heapq.heappush(ready[task.role], place)
    free, left, done, now = dict(processes), dict[int, float](), [0.0] * len(tasks), 0.0
    while True:
        for role, places in ready.items():
            while places and free[role]:
                free[role] -= 1
                place = heapq.heappop(places)
                left[place] = tasks[place].seconds
        if not left:
            return done
        share = min(1.0, num_cores / len(left))
        passed = min(left.values())
        now += passed / share
        left = {place: seconds - passed for place, seconds in left.items()}
        for place in [place for place, seconds in left.items() if seconds <= EPSILON]:
            del left[place]
            done[place] = now
            free[tasks[place].role] += 1
            for follower in followers[place]:
                missing[follower] -= 1
                if not missing[follower]:
                    heapq.heappush(ready[tasks[follower].role], follower)
