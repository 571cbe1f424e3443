"""Virtual rollout actors behind the real fleet (`rlvid.actors.fleet`).

The fleet decides as in a run: who samples what, when an actor is stuck, what replaces it. Here are
the processes it decides about: they take virtual seconds, and die, stop or raise as the injector
says.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlvid.actors.answers import LostGroup, SampledGroup
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
from rlvid.launch.simulate.clock import VirtualClock
from rlvid.launch.simulate.costs import CostModel
from rlvid.launch.simulate.failures import Fate, Injector
from rlvid.launch.simulate.tally import Tally
from rlvid.records import GroupSummary, GroupTask, WeightsManifest

ANSWER_S = 1e-3
"""Of an actor to a question, e.g. how far it is."""
TICK_S = 1e-6
"""Least time until the fleet is looked at again, so that rounding cannot stop the clock."""
ZOMBIE_FACTOR = 3.0
"""Deadlines until a stopped process wakes up."""
DENOISING_STEPS = 10
"""Of a group; how finely progress is seen."""


@dataclass(slots=True)
class Process:
    """One virtual actor."""

    actor_id: str
    slot: int
    is_alive: bool = True
    is_stopped: bool = False
    held: Publish | None = None
    staged: Publish | None = None
    line: deque[FleetTask] = field(default_factory=deque)
    sampling: FleetTask | None = None
    began_s: float = 0.0
    takes_s: float = 0.0
    num_done: int = 0

    @property
    def answers(self) -> bool:
        return self.is_alive and not self.is_stopped


class VirtualRollouts:
    """The loop's `Rollouts` in virtual time."""

    def __init__(
        self,
        clock: VirtualClock,
        settings: FleetSettings,
        num_actors: int,
        *,
        costs: CostModel,
        injector: Injector,
        tally: Tally,
        source: random.Random,
    ) -> None:
        self._clock, self._costs, self._injector = clock, costs, injector
        self._tally, self._source = tally, source
        self._settings = settings
        self.fleet = Fleet(settings, num_actors, seed=source.randrange(2**32))
        self._processes: dict[str, Process] = {}
        self._tasks: dict[str, GroupTask] = {}
        self._manifests: dict[Publish, WeightsManifest] = {}
        self._answers: list[SampledGroup | LostGroup] = []
        self._wakeup_s = float("inf")
        self._is_open = True
        self.fleet.start(clock.now())
        self._turn()

    # The port

    def submit(
        self, task: GroupTask, *, min_version: int = -1, max_version: int | None = None
    ) -> None:
        self._tasks[task.lease_id] = task
        self.fleet.submit(
            FleetTask(
                lease_id=task.lease_id,
                group_id=task.group_id,
                prompt_id=task.prompt.prompt_id,
                min_version=min_version,
                max_version=max_version,
            ),
            self._clock.now(),
        )

    def collect(self, timeout_s: float) -> Sequence[SampledGroup | LostGroup]:
        self._turn()
        answers, self._answers = self._answers, []
        return answers

    def begin_publish(self, manifest: WeightsManifest, payload: Any) -> None:
        publish = Publish(manifest.incarnation, manifest.version)
        self._manifests[publish] = manifest
        self.fleet.publish(publish, self._clock.now())

    @property
    def num_outstanding(self) -> int:
        return len(self._tasks)

    def scale(self, num_actors: int) -> None:
        self.fleet.scale(num_actors, self._clock.now())

    def close(self) -> None:
        """End every process, as the end of the driver does; nothing of it answers any more."""
        self._is_open = False
        for process in self._processes.values():
            self._rests(process, is_waste=True)
            process.is_alive = False

    # What the fleet wants done

    def _turn(self) -> None:
        now = self._clock.now()
        for action in self.fleet.poll(now):
            self._do(action)
        wakeup_s = self.fleet.next_wakeup()
        if wakeup_s < self._wakeup_s:
            self._wakeup_s = wakeup_s
            self._clock.after(max(TICK_S, wakeup_s - now), self._wake)

    def _wake(self) -> None:
        self._wakeup_s = float("inf")

    def _do(self, action: Action) -> None:
        match action:
            case Sample():
                process = self._processes[action.actor_id]
                process.line.append(action.task)
                self._begin(process)
            case Stage():
                self._stage(self._processes[action.actor_id], action.publish)
            case Probe():
                self._later(action.actor_id, ANSWER_S, self._tell_progress)
            case Spawn():
                self._spawn(action)
            case Withdraw():
                self._withdraw(self._processes[action.actor_id], action.lease_id)
            case Kill():
                process = self._processes.pop(action.actor_id)
                self._rests(process, is_waste=True)
                process.is_alive = process.is_stopped and process.is_alive
            case Lost():
                self._tasks.pop(action.task.lease_id)
                self._answers.append(
                    LostGroup(
                        group_id=action.task.group_id,
                        lease_id=action.task.lease_id,
                        prompt_id=action.task.prompt_id,
                        actor_id=action.actor_id,
                        cause=action.cause,
                        reason=action.reason,
                    )
                )
            case AskCanary() | Reload():
                raise NotImplementedError(f"no virtual {action}")

    def _spawn(self, action: Spawn) -> None:
        process = Process(action.actor_id, action.slot)
        self._processes[action.actor_id] = process
        self._tally.starts += 1
        self.fleet.appeared(action.actor_id, self._clock.now())
        seconds = self._costs.start_s.draw(self._source)
        if action.slot in self._injector.dead_actors or self._injector.strikes("start_killed"):
            self._later(action.actor_id, seconds, lambda one: self._die(one, "while it loaded"))
        else:
            self._later(
                action.actor_id,
                seconds,
                lambda one: self.fleet.opened(one.actor_id, self._clock.now()),
            )

    def _stage(self, process: Process, publish: Publish) -> None:
        def arrive(one: Process) -> None:
            now = self._clock.now()
            if self._injector.strikes("publish_refused"):
                self.fleet.stage_refused(one.actor_id, publish, "a digest differs", now)
                return
            one.staged = publish
            self.fleet.staged(one.actor_id, publish, now)

        self._later(process.actor_id, self._costs.push_s.draw(self._source), arrive)

    def _withdraw(self, process: Process, lease_id: str) -> None:
        def answer(one: Process) -> None:
            waiting = next((task for task in one.line if task.lease_id == lease_id), None)
            if waiting is not None:
                one.line.remove(waiting)
            is_ours = waiting is not None
            self.fleet.withdrawn(one.actor_id, lease_id, self._clock.now(), is_ours=is_ours)

        self._later(process.actor_id, ANSWER_S, answer)

    def _tell_progress(self, process: Process) -> None:
        done = process.num_done * DENOISING_STEPS
        if process.sampling is not None and process.takes_s > 0:
            share = (self._clock.now() - process.began_s) / process.takes_s
            done += min(DENOISING_STEPS - 1, max(0, int(share * DENOISING_STEPS)))
        self.fleet.progress(process.actor_id, done, self._clock.now())

    # Sampling

    def _begin(self, process: Process) -> None:
        if process.sampling is not None or not process.line or not process.answers:
            return
        task = process.sampling = process.line.popleft()
        seconds = self._costs.sample_s.draw(self._source)
        if process.staged != process.held:
            process.held = process.staged
            seconds += self._costs.swap_s.draw(self._source)
        fate = self._injector.fate("sample")
        if task.prompt_id in self._injector.deadly_prompts:
            fate = Fate.KILLED
        if fate is Fate.SLOW:
            seconds *= self._injector.rates.slow_factor
        if fate not in (Fate.DONE, Fate.SLOW):
            seconds *= self._source.random()
        process.began_s, process.takes_s = self._clock.now(), seconds
        self._tally.num_sampling += 1
        self._later(process.actor_id, seconds, lambda one: self._end(one, fate), process)

    def _end(self, process: Process, fate: Fate) -> None:
        match fate:
            case Fate.DONE | Fate.SLOW:
                self._finish(process)
            case Fate.RAISES:
                self._rests(process, is_waste=True)
                task, process.sampling = process.sampling, None
                assert task is not None
                error = RuntimeError("sampling was made to fail")
                self.fleet.failed(process.actor_id, task.lease_id, error, self._clock.now())
                self._begin(process)
            case Fate.KILLED:
                self._die(process, "killed")
            case Fate.STUCK | Fate.ZOMBIE:
                process.is_stopped = True
                if fate is Fate.ZOMBIE:
                    after = ZOMBIE_FACTOR * self._settings.deadline_s
                    self._clock.after(after, lambda: self._rise(process))

    def _rise(self, process: Process) -> None:
        """A stopped process goes on, whatever has become of its group."""
        process.is_stopped = False
        if self._is_open and process.sampling is not None:
            self._finish(process)

    def _finish(self, process: Process) -> None:
        now, task = self._clock.now(), process.sampling
        assert task is not None
        process.num_done += 1
        version = -1 if process.held is None else process.held.version
        counts = self.fleet.sampled(process.actor_id, task.lease_id, version, now)
        self._rests(process, is_waste=not counts)
        process.sampling = None
        if counts:
            self._clock.progress()
            self._answers.append(self._answer(process, task.lease_id, version, now))
        if self._processes.get(process.actor_id) is process:
            self._begin(process)

    def _answer(self, process: Process, lease_id: str, version: int, now: float) -> SampledGroup:
        task = self._tasks.pop(lease_id)
        manifest = self._manifests.get(process.held) if process.held is not None else None
        summary = GroupSummary(
            group_id=task.group_id,
            lease_id=lease_id,
            actor_id=process.actor_id,
            policy_version=version,
            weights_digest=manifest.digest if manifest else "",
            sample_s=now - process.began_s,
            num_forwards=0,
        )
        return SampledGroup(group=task.group_id, summary=summary)

    def _die(self, process: Process, reason: str) -> None:
        process.is_alive = False
        self._rests(process, is_waste=True)
        self.fleet.died(process.actor_id, reason, self._clock.now())

    def _rests(self, process: Process, *, is_waste: bool) -> None:
        """Account for a group that ended, or for what was done of it."""
        if process.sampling is None or process.takes_s < 0:
            return
        seconds = self._clock.now() - process.began_s
        self._tally.sampled(seconds, is_waste=is_waste)
        process.takes_s = -1.0

    def _later(
        self,
        actor_id: str,
        seconds: float,
        event: Any,
        process: Process | None = None,
    ) -> None:
        """Have a process do something later, if it can then."""
        process = process or self._processes[actor_id]

        def happen() -> None:
            if process.answers and self._is_open:
                event(process)

        self._clock.after(seconds, happen)
