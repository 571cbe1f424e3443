"""All decisions about the rollout actors of a run: plain logic, no Ray, no threads, no clock.

    submitted --> queue --> the actor's line (one it samples, one that waits) --> sampled
                    ^                 |  actor died or is stuck: the first of its line is Lost,
                    +-- not started --+  what waited behind it goes back to the queue
    slot --> PENDING --> LOADING --> JOINING (weights, canary) --> READY --> leaving --> gone
                 ^----------- pause, crash budget ---- lost -----------+

A shell drives it so (`pool.py` with Ray; the simulator in virtual time): call the method that says
what happened, then `poll(now)`, and do each action it returns; every action but Kill and Lost is
answered later by the event its docstring names, or by `died`. Call `poll` again after each event,
and at `next_wakeup()` at the latest. Times are seconds of any one clock that never goes back.
Events of actors that are gone, and answers nobody waits for, are ignored: a stopped process that
wakes up after it was replaced cannot hand anything in. The shell keeps tasks, tensors and weights;
the fleet knows ids and versions.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import random
from collections import Counter
from dataclasses import dataclass

from rlvid.actors.answers import ActorView
from rlvid.actors.autoscale import Load, wanted_actors
from rlvid.actors.crash_budget import CrashBudget, pause_s
from rlvid.actors.fleet_metrics import FleetMetrics, Usage
from rlvid.actors.fleet_records import (
    MAX_REFUSALS,
    MAX_TASKS,
    Action,
    Actor,
    AskCanary,
    Cause,
    FleetTask,
    Held,
    Kill,
    Lost,
    Probe,
    Publish,
    Reload,
    RolloutLostError,
    Sample,
    Slot,
    Spawn,
    Stage,
    State,
    Withdraw,
)
from rlvid.actors.task_queue import Takers, TaskQueue, fits
from rlvid.config.elasticity import AutoscaleConfig

logger = logging.getLogger(__name__)

PENDING_S = 15.0
"""After which it is said aloud that the cluster has no room for an actor."""
PAUSE_S = 5.0
"""A `poll` that comes so much late says that the driver itself was stopped, not the actors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """What the recipe says; see `RolloutConfig` for the meaning of each."""

    deadline_s: float
    stall_s: float
    heartbeat_s: float
    start_deadline_s: float
    crash_budget: int
    crash_window_s: float
    prefetch: bool = True
    autoscale: AutoscaleConfig | None = None


class Fleet:
    """Slots, actors, queue and versions; see the module for how to drive it."""

    def __init__(self, settings: FleetSettings, num_actors: int, *, seed: int = 0) -> None:
        self._settings = settings
        self._draw = random.Random(seed)
        self._slots: dict[int, Slot] = {}
        self._actors: dict[str, Actor] = {}
        self._queue = TaskQueue()
        self._takers = Takers()
        self._newest: Publish | None = None
        self._canary: Publish | None = None
        self._behind: dict[str, None] = {}
        """Actors to look at for weights they lack."""
        self._capped: Counter[int] = Counter()
        """`max_version` of the tasks that are in the queue or at an actor."""
        self._alarms: list[tuple[float, int, str | int]] = []
        """(due, number, actor or slot)."""
        self._numbers = itertools.count()
        self._num_withdrawing = 0
        self._num_busy = 0
        self._crashes = CrashBudget(settings.crash_budget, settings.crash_window_s)
        self._has_opened = False
        self._nobody_since: float | None = None
        self._promised = math.inf
        """When `poll` was to be called again."""
        self._leases: set[str] = set()
        self._scaled = 0.0
        self._learner_idle_frac = 0.0
        self._wanted = num_actors
        self._states: Counter[State] = Counter()
        self._actions: list[Action] = []
        self.metrics = FleetMetrics()

    # What happened

    def start(self, now: float) -> None:
        """Have the first actors started."""
        self._nobody_since = self._scaled = now
        self._fit(now)

    def appeared(self, actor_id: str, now: float) -> None:
        """The process is there and loads its model."""
        actor = self._actors.get(actor_id)
        if actor is not None and actor.state is State.PENDING:
            self._enter(actor, State.LOADING, now)
            self._arm(actor)

    def opened(self, actor_id: str, now: float) -> None:
        """The policy is loaded, from files as yet."""
        actor = self._actors.get(actor_id)
        if actor is None or actor.is_open:
            return
        self._has_opened = True
        actor.held = actor.staging = actor.checked = actor.canary_since = None
        actor.next_probe, actor.probe_sent = now + self._settings.heartbeat_s, None
        self._enter(actor, State.JOINING, now)
        self._behind[actor_id] = None
        self._join(actor, now)

    def open_failed(self, actor_id: str, error: Exception, now: float) -> None:
        """Loading raised.

        Raises:
            Exception: `error`, when no actor ever loaded this policy: another one would not either.
        """
        if actor_id not in self._actors:
            return
        if not self._has_opened:
            raise error
        self._lose(self._actors[actor_id], Cause.FAILED, f"could not load: {error}", now)

    def submit(self, task: FleetTask, now: float) -> None:
        """Queue a group.

        Raises:
            ValueError: a group of this lease is outstanding.
        """
        if task.lease_id in self._leases:
            raise ValueError(
                f"rollout: lease {task.lease_id!r} of group {task.group_id} is outstanding; "
                "lease a group anew before it is submitted again"
            )
        self._spend(now)
        self._leases.add(task.lease_id)
        self._queue.add(task)
        if task.max_version is not None:
            self._capped[task.max_version] += 1

    def sampled(self, actor_id: str, lease_id: str, version: int, now: float) -> bool:
        """A group is there, sampled with weights of `version`.

        Returns:
            Whether it counts. False for a late answer, and for one with other weights than the task
            allows, which comes back as Lost.
        """
        found = self._answered(actor_id, lease_id, now)
        if found is None:
            return False
        actor, task = found
        actor.slot.failures_in_a_row = 0
        if not fits(version, (task.min_version, task.max_version)):
            allowed = f"{task.min_version} to {task.max_version or 'any'}"
            reason = f"sampled with version {version}, expected {allowed}"
            self._actions.append(
                Lost(task=task, actor_id=actor_id, cause=Cause.STALE, reason=reason)
            )
            return False
        return True

    def failed(self, actor_id: str, lease_id: str, error: Exception, now: float) -> None:
        """Sampling raised where the process lives on.

        Raises:
            ValueError: `error`, what the user gave cannot be sampled by any actor.
        """
        found = self._answered(actor_id, lease_id, now)
        if found is None:
            return
        if isinstance(error, ValueError):
            raise error
        reason = f"{type(error).__name__}: {error}"
        self._actions.append(
            Lost(task=found[1], actor_id=actor_id, cause=Cause.FAILED, reason=reason)
        )

    def withdrawn(self, actor_id: str, lease_id: str, now: float, *, is_ours: bool) -> None:
        """A task was taken back, or (`is_ours` False) the actor had begun with it."""
        actor = self._actors.get(actor_id)
        held = _find(actor, lease_id) if actor is not None else None
        if actor is None or held is None or not held.is_withdrawing:
            return
        self._spend(now)
        held.is_withdrawing = False
        self._num_withdrawing -= 1
        if not is_ours:
            return
        self.metrics.counts["rollout/groups/withdrawn"] += 1
        actor.tasks.remove(held)
        self._queue.add(held.task)
        self._after_task(actor, now)

    def publish(self, publish: Publish, now: float) -> None:
        """There are newer weights; every actor takes them as soon as it can."""
        if self._newest is not None and publish <= self._newest:
            raise ValueError(
                f"rollout: publish {publish} is not newer than {self._newest}; "
                "publish a higher version, or count the learner's restart in `incarnation`"
            )
        self._newest = publish
        for actor in self._actors.values():
            actor.num_refusals = 0
            if actor.is_open:
                self._behind[actor.actor_id] = None

    def staged(self, actor_id: str, publish: Publish, now: float) -> None:
        """The actor has verified these weights; its next group is sampled with them."""
        actor = self._actors.get(actor_id)
        if actor is None or actor.staging != publish:
            return
        actor.staging, actor.held, actor.num_refusals = None, publish, 0
        self.metrics.has_staged = True
        self._behind[actor_id] = None
        self._join(actor, now)

    def stage_refused(self, actor_id: str, publish: Publish, reason: str, now: float) -> None:
        """What arrived is not what was published; the actor keeps what it had and fetches anew.

        Raises:
            RolloutLostError: it came to nothing `MAX_REFUSALS` times, and no actor ever took any.
        """
        actor = self._actors.get(actor_id)
        if actor is None or actor.staging != publish:
            return
        self.metrics.counts["weights/rejected/count"] += 1
        logger.warning("refused publish actor=%s publish=%s reason=%r", actor_id, publish, reason)
        actor.staging = None
        actor.num_refusals += 1
        if actor.num_refusals >= MAX_REFUSALS:
            times = f"refused weights {publish.version} {actor.num_refusals} times: {reason}"
            if not self.metrics.has_staged:
                raise RolloutLostError(f"{actor_id}: {times}")
            self._lose(actor, Cause.WEIGHTS, times, now)
            return
        self._behind[actor_id] = None

    def distrusted(self, actor_id: str, reason: str, now: float) -> None:
        """The actor found that it does not sample with what was published."""
        if actor_id in self._actors:
            self.metrics.counts["weights/rejected/count"] += 1
            self._lose(self._actors[actor_id], Cause.WEIGHTS, reason, now)

    def set_canary(self, publish: Publish, now: float) -> None:
        """From now on actors with these weights are compared with the learner's velocity."""
        self._canary = publish
        for actor in self._actors.values():
            self._ask_canary(actor, now)

    def canary_answered(
        self, actor_id: str, publish: Publish | None, difference: str | None, now: float
    ) -> None:
        """An actor gave its velocity.

        Args:
            publish: the weights it used.
            difference: how it differs from the learner's; None when it does not.

        Raises:
            RolloutLostError: it differs and no other actor's ever fitted.
        """
        actor = self._actors.get(actor_id)
        if actor is None or actor.canary_since is None:
            return
        actor.canary_since = None
        if publish == self._canary and difference is not None:
            reason = f"canary velocity {difference}"
            if not self.metrics.has_passed:
                raise RolloutLostError(
                    f"{actor_id}: {reason}; the actor does not sample with the published policy "
                    "(dtype, adapter or attention backend differ)"
                )
            self._lose(actor, Cause.CANARY, reason, now)
            return
        if publish == self._canary:
            actor.checked = publish
            self.metrics.has_passed = True
            self.metrics.counts["rollout/canary/passed"] += 1
        self._join(actor, now)

    def progress(self, actor_id: str, num_steps: int, now: float) -> None:
        """The actor answered a probe: so many denoising steps are done since it began."""
        actor = self._actors.get(actor_id)
        if actor is None:
            return
        if num_steps > actor.num_steps:
            actor.num_steps, actor.progressed = num_steps, now
        actor.probe_sent = None
        actor.next_probe = now + self._settings.heartbeat_s
        self._arm(actor)

    def died(self, actor_id: str, reason: str, now: float) -> None:
        """The process is gone.

        Raises:
            RolloutLostError: the crash budget is spent.
        """
        if actor_id in self._actors:
            self._lose(self._actors[actor_id], Cause.DIED, f"its actor died: {reason}", now)

    def reload(self, now: float) -> None:
        """The policy is another one, from files; who is still loading the old one starts anew.

        Raises:
            ValueError: a group is outstanding, which would be sampled with either.
        """
        if len(self._queue) or any(actor.tasks for actor in self._actors.values()):
            raise ValueError("rollout: collect all groups before the policy is changed")
        self._newest = self._canary = None
        self._has_opened = False
        self._behind.clear()
        for actor in list(self._actors.values()):
            if actor.is_open and not actor.is_leaving:
                actor.staging, actor.canary_since, actor.probe_sent = None, None, None
                self._enter(actor, State.LOADING, now)
                self._actions.append(Reload(actor_id=actor.actor_id))
                self._arm(actor)
            else:
                self._end(actor, now, is_stuck=False)
        self._fit(now)

    def scale(self, num_actors: int, now: float) -> None:
        """Have so many actors from now on; who must go finishes its group first."""
        if num_actors < 1:
            raise ValueError(f"rollout: scale to at least 1 actor, got {num_actors}")
        if num_actors != self._wanted:
            logger.info("scaling rollouts from=%d to=%d", self._wanted, num_actors)
        self._spend(now)
        self._wanted = num_actors
        self._scaled = now
        self.metrics.since_scaling = Usage()
        self._fit(now)

    def note_learner_idle(self, frac: float) -> None:
        """The share of its time that the learner waits for groups, for the autoscaler."""
        self._learner_idle_frac = frac

    # What to do

    def poll(self, now: float) -> list[Action]:
        """Return what is to be done now, in order.

        Raises:
            RolloutLostError: the crash budget is spent, or there is no actor for too long.
        """
        self._forgive_pause(now)
        while self._alarms and self._alarms[0][0] <= now:
            due, _, who = heapq.heappop(self._alarms)
            if isinstance(who, int):
                self._respawn(self._slots[who], now)
            elif who in self._actors and self._actors[who].armed_at == due:
                self._check(self._actors[who], now)
        self._autoscale(now)
        self._check_anybody(now)
        self._stage(now)
        self._give_up_stale()
        self._assign(now)
        actions, self._actions = self._actions, []
        return actions

    def next_wakeup(self) -> float:
        """Return when `poll` should be called again if nothing happens before; may be infinite."""
        times = [self._alarms[0][0] if self._alarms else math.inf]
        if self._settings.autoscale is not None:
            times.append(self._scaled + self._settings.autoscale.cooldown_s)
        if self._nobody_since is not None:
            times.append(self._nobody_since + self._settings.start_deadline_s)
        self._promised = min(times)
        return self._promised

    # State for others

    @property
    def num_actors(self) -> int:
        """Actors wanted."""
        return self._wanted

    @property
    def newest(self) -> Publish | None:
        return self._newest

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def actors(self) -> tuple[Actor, ...]:
        """Every actor there is, for reading, in the order of their slots."""
        return tuple(sorted(self._actors.values(), key=lambda actor: actor.slot.index))

    def views(self, now: float) -> list[ActorView]:
        """Return what every actor does, in the order of their slots."""
        return [_view(actor, now) for actor in self.actors]

    @property
    def is_complete(self) -> bool:
        """Whether as many actors as wanted are ready."""
        ready = [a for a in self._actors.values() if a.state is State.READY and not a.is_leaving]
        return len(ready) >= self._wanted

    @property
    def is_up_to_date(self) -> bool:
        """Whether every open actor that stays, and at least one, has the newest weights."""
        staying = [a for a in self._actors.values() if a.is_open and not a.is_leaving]
        newest = self._newest
        return bool(staying) and (
            newest is None or all(a.held is not None and a.held >= newest for a in staying)
        )

    @property
    def is_checked(self) -> bool:
        """Whether every open actor that stays, and at least one, answered the canary rightly."""
        staying = [a for a in self._actors.values() if a.is_open and not a.is_leaving]
        return bool(staying) and all(
            a.checked == self._canary or (a.held is not None and a.held > (self._canary or a.held))
            for a in staying
        )

    def note_time(self, now: float) -> None:
        """Bring the shares of time up to now, before metrics are taken."""
        self._spend(now)

    def gauges(self) -> dict[str, float]:
        """Return the present numbers under the names of the metrics table."""
        versions = [a.version for a in self._actors.values() if a.is_open]
        newest = self._newest.version if self._newest else -1
        return {
            "rollout/actors/wanted": float(self._wanted),
            "rollout/actors/alive": float(self._states[State.READY]),
            "rollout/actors/pending": float(self._states[State.PENDING]),
            "rollout/actors/starting": float(
                self._states[State.LOADING] + self._states[State.JOINING]
            ),
            "rollout/actors/draining": float(sum(a.is_leaving for a in self._actors.values())),
            "rollout/actors/busy": float(self._num_busy),
            "rollout/queue/length": float(len(self._queue)),
            "weights/version_lag/max": float(max((newest - v for v in versions), default=0)),
        }

    # Inside: tasks

    def _assign(self, now: float) -> None:
        self._spend(now)
        while len(self._queue) and (found := self._queue.first_for(self._takers.versions(0))):
            self._send(*found, num_tasks=0, now=now)
        if not self._settings.prefetch:
            return
        # Who is idle now and may not take them as yet will take them as soon as its weights come.
        spare = len(self._queue) - self._takers.count(0)
        while spare > 0 and (found := self._queue.first_for(self._takers.versions(1))):
            self._send(*found, num_tasks=1, now=now)
            spare -= 1
        self._take_back_for_idle(now)

    def _send(self, task: FleetTask, version: int, *, num_tasks: int, now: float) -> None:
        actor = self._takers.first(num_tasks, version)
        self._queue.remove(task)
        if not actor.tasks:
            self._begins(actor, now)
        actor.tasks.append(Held(task))
        self._takers.update(actor)
        self._actions.append(Sample(actor_id=actor.actor_id, task=task))

    def _take_back_for_idle(self, now: float) -> None:
        """Have idle actors do what waits behind the work of others."""
        wanted = self._takers.count(0) - self._num_withdrawing
        if wanted <= 0:
            return
        idle = self._takers.versions(0)
        for actor in self._takers.latest(MAX_TASKS):
            held = actor.tasks[-1]
            allowed = (held.task.min_version, held.task.max_version)
            if held.is_withdrawing or not any(fits(version, allowed) for version in idle):
                continue
            self._withdraw(actor, held)
            wanted -= 1
            if not wanted:
                return

    def _withdraw(self, actor: Actor, held: Held) -> None:
        held.is_withdrawing = True
        self._num_withdrawing += 1
        lease_id = held.task.lease_id
        self._actions.append(Withdraw(actor_id=actor.actor_id, lease_id=lease_id))

    def _answered(self, actor_id: str, lease_id: str, now: float) -> tuple[Actor, FleetTask] | None:
        """Take an answered task off its actor; None for what nobody waits for."""
        actor = self._actors.get(actor_id)
        held = _find(actor, lease_id) if actor is not None else None
        if actor is None or held is None:
            self.metrics.counts["rollout/groups/late"] += 1
            return None
        self._spend(now)
        self._num_withdrawing -= held.is_withdrawing
        actor.tasks.remove(held)
        self._leaves(held.task)
        self._after_task(actor, now)
        return actor, held.task

    def _after_task(self, actor: Actor, now: float) -> None:
        actor.head_since = actor.progressed = now
        if actor.tasks:
            self._arm(actor)
        else:
            self._num_busy -= 1
        if actor.is_leaving and not actor.tasks:
            self._end(actor, now, is_stuck=False)
            return
        self._takers.update(actor)

    def _begins(self, actor: Actor, now: float) -> None:
        actor.head_since = actor.progressed = now
        self._num_busy += 1
        self._arm(actor)

    def _leaves(self, task: FleetTask) -> None:
        """The task is no longer outstanding here."""
        self._leases.discard(task.lease_id)
        if task.max_version is not None:
            self._capped[task.max_version] -= 1
            if not self._capped[task.max_version]:
                del self._capped[task.max_version]

    def _give_up_stale(self) -> None:
        """Hand back what may only be sampled with weights that no actor has any more."""
        if not self._capped or self._newest is None:
            return
        held = {a.version for a in self._actors.values() if a.state is State.READY}
        for task in self._queue.below(self._newest.version):
            if any(fits(version, (task.min_version, task.max_version)) for version in held):
                continue
            self._queue.remove(task)
            self._leaves(task)
            reason = f"no actor holds a version of at most {task.max_version} any more"
            self._actions.append(Lost(task=task, actor_id="", cause=Cause.STALE, reason=reason))

    # Inside: weights

    def _stage(self, now: float) -> None:
        """Bring actors to the newest weights, unless tasks are left that need older ones."""
        newest = self._newest
        if (
            newest is None
            or not self._behind
            or min(self._capped, default=newest.version) < (newest.version)
        ):
            return
        for actor_id in self._behind:
            actor = self._actors.get(actor_id)
            if actor is None or not actor.is_open or actor.staging is not None:
                continue
            if actor.is_leaving:
                continue
            if actor.held is not None and actor.held >= newest:
                continue
            if actor.state is State.JOINING and actor.canary_since is not None:
                continue
            actor.staging, actor.staging_since = newest, now
            self._actions.append(Stage(actor_id=actor_id, publish=newest))
            self._arm(actor)
        self._behind.clear()

    def _join(self, actor: Actor, now: float) -> None:
        """Have an open actor work once it has its weights, and the canary has been asked."""
        self._ask_canary(actor, now)
        if actor.state is State.JOINING:
            lacks_weights = self._newest is not None and actor.held is None
            if lacks_weights or actor.canary_since is not None:
                self._arm(actor)
                return
            if self._canary is not None and actor.checked is None:
                self.metrics.counts["rollout/canary/unchecked"] += 1
            self._spend(now)
            self._enter(actor, State.READY, now)
            self._behind[actor.actor_id] = None
        self._takers.update(actor)
        self._arm(actor)

    def _ask_canary(self, actor: Actor, now: float) -> None:
        is_due = self._canary is not None and actor.held == self._canary != actor.checked
        if actor.is_open and is_due and actor.canary_since is None and not actor.is_leaving:
            actor.canary_since = now
            self._actions.append(AskCanary(actor_id=actor.actor_id))
            self._arm(actor)

    # Inside: life of actors

    def _fit(self, now: float) -> None:
        """Start and end actors so that there are as many as wanted."""
        staying = [slot for slot in self._slots.values() if slot.is_wanted]
        if len(staying) > self._wanted:
            for slot in sorted(staying, key=self._worth)[: len(staying) - self._wanted]:
                self._leave(slot, now)
        for slot in self._spare_slots(self._wanted - len(staying)):
            slot.is_wanted = True
            staying.append(slot)
            if slot.actor_id is not None:
                actor = self._actors[slot.actor_id]
                actor.is_leaving = False
                self._behind[actor.actor_id] = None
                self._takers.update(actor)
        for slot in staying:
            if slot.is_wanted and slot.actor_id is None and slot.respawn_at is None:
                self._spawn(slot, now)

    def _spare_slots(self, count: int) -> list[Slot]:
        """Return slots to use again, those whose actor is still leaving first, then new ones."""
        spare = [slot for slot in self._slots.values() if not slot.is_wanted]
        spare.sort(key=lambda slot: (slot.actor_id is None, slot.index))
        while len(spare) < count:
            slot = Slot(len(self._slots), is_wanted=False)
            self._slots[slot.index] = slot
            spare.append(slot)
        return spare[: max(count, 0)]

    def _worth(self, slot: Slot) -> tuple[int, int, int]:
        """Order in which slots are given up: no process yet first, then who has least to do."""
        actor = self._actors.get(slot.actor_id or "")
        stage = 0 if actor is None else 1 + list(State).index(actor.state)
        return stage, len(actor.tasks) if actor else 0, -slot.index

    def _leave(self, slot: Slot, now: float) -> None:
        slot.is_wanted, slot.respawn_at = False, None
        if slot.actor_id is None:
            return
        actor = self._actors[slot.actor_id]
        actor.is_leaving = True
        self._takers.update(actor)
        if not actor.tasks:
            self._end(actor, now, is_stuck=False)
            return
        for held in list(actor.tasks)[1:]:
            if not held.is_withdrawing:
                self._withdraw(actor, held)

    def _spawn(self, slot: Slot, now: float) -> None:
        actor = Actor(f"actor-{slot.index}.{slot.num_spawned}", slot, now)
        slot.num_spawned += 1
        slot.actor_id, slot.respawn_at = actor.actor_id, None
        self._actors[actor.actor_id] = actor
        self._states[State.PENDING] += 1
        self._arm(actor)
        self._actions.append(Spawn(actor_id=actor.actor_id, slot=slot.index))

    def _respawn(self, slot: Slot, now: float) -> None:
        if slot.respawn_at is not None and slot.respawn_at <= now and slot.actor_id is None:
            self._spawn(slot, now)

    def _enter(self, actor: Actor, state: State, now: float) -> None:
        self._spend(now)
        self._states[actor.state] -= 1
        self._states[state] += 1
        actor.state, actor.since = state, now
        self._takers.update(actor)
        self._note_nobody(now)

    def _end(self, actor: Actor, now: float, *, is_stuck: bool) -> None:
        """Forget an actor; nothing it says from now on counts."""
        self._spend(now)
        self._takers.remove(actor)
        self._states[actor.state] -= 1
        self._num_busy -= bool(actor.tasks)
        self._num_withdrawing -= sum(held.is_withdrawing for held in actor.tasks)
        del self._actors[actor.actor_id]
        self._behind.pop(actor.actor_id, None)
        actor.slot.actor_id = None
        self._actions.append(Kill(actor_id=actor.actor_id, is_stuck=is_stuck))
        self._note_nobody(now)

    def _note_nobody(self, now: float) -> None:
        if self._states[State.JOINING] + self._states[State.READY]:
            self._nobody_since = None
        elif self._nobody_since is None:
            self._nobody_since = now

    def _lose(self, actor: Actor, cause: Cause, reason: str, now: float) -> None:
        """Give up an actor: its group comes back, what had not begun is queued, a new one comes."""
        self._end(actor, now, is_stuck=cause is Cause.STUCK)
        for place, held in enumerate(actor.tasks):
            if place:
                self._queue.add(held.task)
                continue
            self._leaves(held.task)
            self._actions.append(
                Lost(
                    task=held.task,
                    actor_id=actor.actor_id,
                    cause=cause,
                    reason=f"{actor.actor_id}: {reason}",
                )
            )
        self.metrics.replaced(cause)
        slot = actor.slot
        if not slot.is_wanted:
            return
        slot.failures_in_a_row += 1
        pause = pause_s(slot.failures_in_a_row, self._draw)
        logger.warning(
            "lost actor=%s cause=%s next_in_s=%.1f reason=%r", actor.actor_id, cause, pause, reason
        )
        self._crashes.spend(now, num_actors=self._wanted, actor_id=actor.actor_id, reason=reason)
        slot.respawn_at = now + pause
        heapq.heappush(self._alarms, (slot.respawn_at, next(self._numbers), slot.index))

    # Inside: time

    def _arm(self, actor: Actor) -> None:
        """Have the actor looked at when the first of its limits comes."""
        due = min(self._limits(actor), default=None, key=lambda limit: limit[0])
        if due is not None and (actor.armed_at is None or due[0] < actor.armed_at):
            actor.armed_at = due[0]
            heapq.heappush(self._alarms, (due[0], next(self._numbers), actor.actor_id))

    def _limits(self, actor: Actor) -> list[tuple[float, str]]:
        """Return (when, what is wrong then); "" where it is only time for a probe."""
        config = self._settings
        if actor.state is State.PENDING:
            return [] if actor.is_reported else [(actor.since + PENDING_S, "")]
        if actor.state is State.LOADING:
            seconds = config.start_deadline_s
            text = f"did not load its policy in cluster.start_deadline_s, {seconds:g} s"
            return [(actor.since + seconds, text)]
        stall = f"rollout.stall_s, {config.stall_s:g} s"
        late = f"rollout.deadline_s, {config.deadline_s:g} s"
        limits = [(actor.next_probe, "")]
        if actor.probe_sent is not None:
            limits = [(actor.probe_sent + config.stall_s, f"did not answer for {stall}")]
        if actor.tasks:
            limits.append((actor.progressed + config.stall_s, f"did no denoising step for {stall}"))
            limits.append((actor.head_since + config.deadline_s, f"overran {late}"))
        if actor.staging is not None:
            limits.append((actor.staging_since + config.deadline_s, f"took no weights for {late}"))
        if actor.canary_since is not None and not actor.tasks:
            since = max(actor.canary_since, actor.head_since)
            limits.append((since + config.deadline_s, f"gave no canary for {late}"))
        return limits

    def _check(self, actor: Actor, now: float) -> None:
        actor.armed_at = None
        if actor.state is State.PENDING:
            actor.is_reported = True
            logger.warning(
                "actor=%s waits for room in the cluster since seconds=%.0f; raise cluster.num_cpus "
                "of a local one, add nodes, or lower rollout.num_cpus, num_gpus or the number "
                "of actors",
                actor.actor_id,
                now - actor.since,
            )
            return
        for due, wrong in self._limits(actor):
            if due <= now and wrong:
                self._lose(actor, Cause.STUCK, wrong, now)
                return
            if due <= now:
                actor.probe_sent = now
                self._actions.append(Probe(actor_id=actor.actor_id))
        self._arm(actor)

    def _forgive_pause(self, now: float) -> None:
        """Begin every limit anew when the driver itself did not run: answers are on their way."""
        pause = now - self._promised
        if pause < PAUSE_S:
            return
        logger.warning("the driver did not run for seconds=%.1f; limits begin anew", pause)
        for actor in self._actors.values():
            actor.since = actor.head_since = actor.progressed = actor.staging_since = now
            actor.next_probe, actor.probe_sent, actor.armed_at = now, None, None
            if actor.canary_since is not None:
                actor.canary_since = now
            self._arm(actor)
        if self._nobody_since is not None:
            self._nobody_since = now

    def _check_anybody(self, now: float) -> None:
        limit_s = self._settings.start_deadline_s
        if self._nobody_since is None or now - self._nobody_since < limit_s:
            return
        raise RolloutLostError(
            f"rollout: no actor works since {limit_s:g} s (cluster.start_deadline_s); of "
            f"{self._wanted} wanted {self._states[State.PENDING]} wait for room in the cluster and "
            f"{self._states[State.LOADING]} load. Lower rollout.num_actors or its num_cpus and "
            "num_gpus, add nodes, or raise cluster.start_deadline_s when nodes or models come "
            "slowly; then resume the run"
        )

    def _autoscale(self, now: float) -> None:
        config = self._settings.autoscale
        if config is None or now - self._scaled < config.cooldown_s:
            return
        self._spend(now)
        usage = self.metrics.since_scaling
        load = Load(
            num_actors=self._wanted,
            num_ready=self._states[State.READY],
            queued_frac=usage.queued_frac,
            rollout_idle_frac=1.0 - usage.busy_frac,
            learner_idle_frac=self._learner_idle_frac,
        )
        self.scale(wanted_actors(config, load), now)

    def _spend(self, now: float) -> None:
        """Account for the time until now, before what is counted changes."""
        self.metrics.spent(
            now,
            num_ready=self._states[State.READY],
            num_busy=self._num_busy,
            is_queued=len(self._queue) > 0,
        )


def _find(actor: Actor, lease_id: str) -> Held | None:
    return next((held for held in actor.tasks if held.task.lease_id == lease_id), None)


def _view(actor: Actor, now: float) -> ActorView:
    group_id = actor.tasks[0].task.group_id if actor.tasks else ""
    state = "busy" if group_id else "idle"
    if actor.state is not State.READY:
        state = "starting"
    elif actor.is_leaving:
        state = "draining"
    return ActorView(
        actor_id=actor.actor_id,
        state=state,
        group_id=group_id,
        since_s=max(0.0, now - (actor.head_since if group_id else actor.since)),
        version=actor.version,
        is_open=actor.is_open,
    )
