"""Which queued group goes to which actor that can take one: by group id, held to its versions.

Both sides are kept by version, of which there are few at a time, so that neither the number of
groups nor that of actors makes a choice slower.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator

from rlvid.actors.fleet_records import Actor, FleetTask, State

Versions = tuple[int, int | None]
"""(min_version, max_version)."""


class TaskQueue:
    """Groups that wait for an actor, in the order of their ids."""

    def __init__(self) -> None:
        self._tasks: dict[Versions, list[FleetTask]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, task: FleetTask) -> None:
        waiting = self._tasks.setdefault((task.min_version, task.max_version), [])
        bisect.insort(waiting, task, key=_order)
        self._size += 1

    def first_for(self, versions: Iterable[int]) -> tuple[FleetTask, int] | None:
        """Return the first task that weights of one of the versions may sample, and the newest
        version that may."""
        newest_first = sorted(versions, reverse=True)
        best: tuple[FleetTask, int] | None = None
        for allowed, waiting in self._tasks.items():
            fitting = next((v for v in newest_first if fits(v, allowed)), None)
            if fitting is not None and (best is None or _order(waiting[0]) < _order(best[0])):
                best = (waiting[0], fitting)
        return best

    def remove(self, task: FleetTask) -> None:
        allowed = (task.min_version, task.max_version)
        self._tasks[allowed].remove(task)
        self._size -= 1
        if not self._tasks[allowed]:
            del self._tasks[allowed]

    def below(self, version: int) -> list[FleetTask]:
        """Return the tasks that weights of `version` are too new for."""
        return [
            task
            for (_, high), waiting in self._tasks.items()
            if high is not None and high < version
            for task in waiting
        ]


class Takers:
    """Ready actors that stay, by the tasks they hold and their version; first come, first out."""

    def __init__(self) -> None:
        self._actors: dict[tuple[int, int], dict[str, Actor]] = {}

    def update(self, actor: Actor) -> None:
        """List an actor where it belongs now; called after each change of it."""
        takes = actor.state is State.READY and not actor.is_leaving
        place = (len(actor.tasks), actor.version) if takes else None
        if place == actor.place:
            return
        if actor.place is not None:
            del self._actors[actor.place][actor.actor_id]
            if not self._actors[actor.place]:
                del self._actors[actor.place]
        if place is not None:
            self._actors.setdefault(place, {})[actor.actor_id] = actor
        actor.place = place

    def remove(self, actor: Actor) -> None:
        """Forget an actor that is gone."""
        actor.is_leaving = True
        self.update(actor)

    def versions(self, num_tasks: int) -> list[int]:
        """Return the versions that actors with so many tasks hold."""
        return [version for held, version in self._actors if held == num_tasks]

    def first(self, num_tasks: int, version: int) -> Actor:
        """Return the one that has been so the longest."""
        return next(iter(self._actors[num_tasks, version].values()))

    def count(self, num_tasks: int) -> int:
        return sum(len(found) for (held, _), found in self._actors.items() if held == num_tasks)

    def latest(self, num_tasks: int) -> Iterator[Actor]:
        """Yield actors with so many tasks, those that became so last first."""
        for place in reversed(self._actors):
            if place[0] == num_tasks:
                yield from reversed(self._actors[place].values())


def fits(version: int, allowed: Versions) -> bool:
    low, high = allowed
    return low <= version and (high is None or version <= high)


def _order(task: FleetTask) -> tuple[str, str]:
    return task.group_id, task.lease_id
