"""A fleet played in virtual time: actors that take given seconds, and do what a test says wrong."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from rlvid.actors.fleet import Fleet, FleetSettings
from rlvid.actors.fleet_records import (
    Action,
    AskCanary,
    FleetTask,
    Kill,
    Lost,
    Probe,
    Publish,
    Reload,
    Sample,
    Spawn,
    Stage,
    Withdraw,
)

SETTINGS = FleetSettings(
    deadline_s=100.0,
    stall_s=10.0,
    heartbeat_s=1.0,
    start_deadline_s=60.0,
    crash_budget=3,
    crash_window_s=1000.0,
)


def task(name: str, *, min_version: int = -1, max_version: int | None = None) -> FleetTask:
    return FleetTask(
        lease_id=f"lease-{name}",
        group_id=name,
        prompt_id=f"prompt-{name}",
        min_version=min_version,
        max_version=max_version,
    )


@dataclass
class PlayedActor:
    """A process that samples one group after the other."""

    line: list[FleetTask] = field(default_factory=list)
    is_sampling: bool = False
    held: int = -1
    staged: int = -1
    num_steps: int = 0
    is_stopped: bool = False
    is_dead: bool = False


class PlayedFleet:
    """Does what the fleet says, after fixed seconds, and keeps what came of it."""

    def __init__(
        self,
        num_actors: int,
        *,
        settings: FleetSettings = SETTINGS,
        sample_s: float = 4.0,
        load_s: float = 2.0,
        stage_s: float = 0.1,
    ) -> None:
        self.fleet = Fleet(settings, num_actors)
        self.now = 0.0
        self.sample_s, self.load_s, self.stage_s = sample_s, load_s, stage_s
        self.has_room: Callable[[], bool] = lambda: True
        self.actors: dict[str, PlayedActor] = {}
        self.sampled: list[tuple[str, str, int]] = []
        """(group id, actor id, version) of every group that counted."""
        self.lost: list[Lost] = []
        self.spawned: list[tuple[float, str]] = []
        self.killed: list[tuple[float, str]] = []
        self.began: list[tuple[float, str, str]] = []
        """(time, actor id, group id)."""
        self.actions: Counter[str] = Counter()
        self.refuses: Callable[[str, Publish], bool] = lambda actor_id, publish: False
        self.canary: Callable[[str], str | None] = lambda actor_id: None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.fleet.start(0.0)
        self._do_all()

    def submit(self, *tasks: FleetTask) -> None:
        for one in tasks:
            self.fleet.submit(one, self.now)
        self._do_all()

    def publish(self, version: int, incarnation: int = 0) -> None:
        self.fleet.publish(Publish(incarnation, version), self.now)
        self._do_all()

    def scale(self, num_actors: int) -> None:
        self.fleet.scale(num_actors, self.now)
        self._do_all()

    def later(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), event))

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        until = self.now + seconds
        while True:
            wake = self.fleet.next_wakeup()
            due = self._events[0][0] if self._events else math.inf
            if min(due, wake) > until:
                self.now = until
                return
            self.now = max(self.now, min(due, wake))
            if self._events and due <= wake:
                heapq.heappop(self._events)[2]()
            self._do_all()

    def kill(self, actor_id: str) -> None:
        """SIGKILL: noticed at once."""
        self.actors[actor_id].is_dead = True
        self.fleet.died(actor_id, "killed", self.now)
        self._do_all()

    def stop(self, actor_id: str) -> None:
        """SIGSTOP: never noticed by itself."""
        self.actors[actor_id].is_stopped = True

    def ids(self) -> list[str]:
        return [actor.actor_id for actor in self.fleet.actors]

    def _do_all(self) -> None:
        for action in self.fleet.poll(self.now):
            self.actions[type(action).__name__] += 1
            self._do(action)

    def _do(self, action: Action) -> None:
        actor_id = action.actor_id
        match action:
            case Spawn():
                self.spawned.append((self.now, actor_id))
                self.actors[actor_id] = PlayedActor()
                if self.has_room():
                    self.fleet.appeared(actor_id, self.now)
                    self._answer(actor_id, self.load_s, self.fleet.opened)
            case Reload():
                self._answer(actor_id, self.load_s, self.fleet.opened)
            case Sample():
                self.actors[actor_id].line.append(action.task)
                self._begin(actor_id)
            case Withdraw():
                self.later(0.001, lambda: self._withdraw(actor_id, action.lease_id))
            case Stage():
                self._stage(actor_id, action.publish)
            case AskCanary():
                self.later(0.001, lambda: self._canary(actor_id))
            case Probe():
                self.later(0.001, lambda: self._progress(actor_id))
            case Kill():
                self.killed.append((self.now, actor_id))
                if not action.is_stuck:
                    self.actors[actor_id].is_dead = True
            case Lost():
                self.lost.append(action)

    def _lives(self, actor_id: str) -> bool:
        actor = self.actors[actor_id]
        return not (actor.is_dead or actor.is_stopped)

    def _answer(self, actor_id: str, seconds: float, event: Callable[[str, float], None]) -> None:
        def answer() -> None:
            if self._lives(actor_id):
                event(actor_id, self.now)

        self.later(seconds, answer)

    def _begin(self, actor_id: str) -> None:
        actor = self.actors[actor_id]
        if actor.is_sampling or not actor.line or not self._lives(actor_id):
            return
        actor.is_sampling = True
        actor.held = max(actor.held, actor.staged)
        self.began.append((self.now, actor_id, actor.line[0].group_id))
        for step in range(4):
            self.later(self.sample_s * step / 4, lambda: self._step(actor_id))
        version = actor.held
        self.later(self.sample_s, lambda: self._finish(actor_id, version))

    def _step(self, actor_id: str) -> None:
        if self._lives(actor_id):
            self.actors[actor_id].num_steps += 1

    def _finish(self, actor_id: str, version: int) -> None:
        if not self._lives(actor_id):
            return
        actor = self.actors[actor_id]
        done = actor.line.pop(0)
        actor.is_sampling = False
        if self.fleet.sampled(actor_id, done.lease_id, version, self.now):
            self.sampled.append((done.group_id, actor_id, version))
        self._begin(actor_id)

    def _withdraw(self, actor_id: str, lease_id: str) -> None:
        if not self._lives(actor_id):
            return
        actor = self.actors[actor_id]
        waiting = [one for one in actor.line[actor.is_sampling :] if one.lease_id == lease_id]
        for one in waiting:
            actor.line.remove(one)
        self.fleet.withdrawn(actor_id, lease_id, self.now, is_ours=bool(waiting))

    def _stage(self, actor_id: str, publish: Publish) -> None:
        def answer() -> None:
            if not self._lives(actor_id):
                return
            if self.refuses(actor_id, publish):
                self.fleet.stage_refused(actor_id, publish, "a flipped byte", self.now)
                return
            self.actors[actor_id].staged = publish.version
            self.fleet.staged(actor_id, publish, self.now)

        self.later(self.stage_s, answer)

    def _canary(self, actor_id: str) -> None:
        if self._lives(actor_id):
            newest = self.fleet.newest
            self.fleet.canary_answered(actor_id, newest, self.canary(actor_id), self.now)

    def _progress(self, actor_id: str) -> None:
        if self._lives(actor_id):
            self.fleet.progress(actor_id, self.actors[actor_id].num_steps, self.now)


def settings(**changes: object) -> FleetSettings:
    return replace(SETTINGS, **changes)  # type: ignore[arg-type]
