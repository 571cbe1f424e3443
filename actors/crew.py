"""The actors of the fleet as processes: slots, states, limits of time; no tasks and no weights."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import random
from collections import Counter

from rlvid.actors.crash_budget import CrashBudget, pause_s
from rlvid.actors.fleet_metrics import FleetMetrics
from rlvid.actors.fleet_records import (
    Action,
    Actor,
    Cause,
    FleetSettings,
    Kill,
    Probe,
    RolloutLostError,
    Slot,
    Spawn,
    State,
)
from rlvid.actors.limits import limits
from rlvid.actors.task_queue import Takers, TaskQueue
from rlvid.config.node_group import said_of

logger = logging.getLogger(__name__)


class Crew:
    """Who there is, and when who is to be looked at; shared by the parts of the fleet."""

    def __init__(self, settings: FleetSettings, *, seed: int) -> None:
        self.settings = settings
        self.slots: dict[int, Slot] = {}
        self.actors: dict[str, Actor] = {}
        self.takers = Takers()
        self.queue = TaskQueue()
        self.states: Counter[State] = Counter()
        self.num_busy = 0
        self.num_withdrawing = 0
        """Tasks that are on their way back from an actor's line."""
        self.metrics = FleetMetrics()
        self.actions: list[Action] = []
        self._waiting: dict[int, Slot] = {}
        """Slots whose actor starts when those before it have."""
        self.nobody_since: float | None = None
        """Since when no actor has a process."""
        self._draw = random.Random(seed)
        self._crashes = CrashBudget(settings.crash_budget, settings.crash_window_s)
        self._alarms: list[tuple[float, int, str | int]] = []
        """(due, number, actor or slot)."""
        self._numbers = itertools.count()

    # Coming and going

    def spare_slots(self, count: int) -> list[Slot]:
        """Return slots to use again, those whose actor is still leaving first, then new ones."""
        spare = [slot for slot in self.slots.values() if not slot.is_wanted]
        spare.sort(key=lambda slot: (slot.actor_id is None, slot.index))
        while len(spare) < count:
            slot = Slot(len(self.slots), is_wanted=False)
            self.slots[slot.index] = slot
            spare.append(slot)
        return spare[: max(count, 0)]

    def worth(self, slot: Slot) -> tuple[int, int, int]:
        """Order in which slots are given up: no process yet first, then who has least to do."""
        actor = self.actors.get(slot.actor_id or "")
        stage = 0 if actor is None else 1 + list(State).index(actor.state)
        return stage, len(actor.tasks) if actor else 0, -slot.index

    def wait_to_start(self, slot: Slot) -> None:
        """Have an actor of this slot started in its turn, see `start_waiting`."""
        self._waiting.setdefault(slot.index, slot)

    def start_waiting(self, now: float) -> None:
        """Start whose turn it is: all of them while nobody samples, else `max_starting` at once."""
        while self._waiting and self._has_turn():
            slot = self._waiting.pop(next(iter(self._waiting)))
            if slot.is_wanted and slot.actor_id is None and slot.respawn_at is None:
                self.spawn(slot, now)

    def _has_turn(self) -> bool:
        limit = self.settings.max_starting
        if limit is None or not self.states[State.JOINING] + self.states[State.READY]:
            return True
        # One that was reported waits for room in the cluster, and takes nobody's time.
        pending = (a for a in self.actors.values() if a.state is State.PENDING)
        starting = sum(not actor.is_reported for actor in pending) + self.states[State.LOADING]
        return starting < limit

    def spawn(self, slot: Slot, now: float) -> None:
        actor = Actor(f"actor-{slot.index}.{slot.num_spawned}", slot, now)
        slot.num_spawned += 1
        slot.actor_id, slot.respawn_at = actor.actor_id, None
        self.actors[actor.actor_id] = actor
        self.states[State.PENDING] += 1
        self.arm(actor)
        self.actions.append(Spawn(actor_id=actor.actor_id, slot=slot.index))

    def enter(self, actor: Actor, state: State, now: float) -> None:
        self.spend(now)
        self.states[actor.state] -= 1
        self.states[state] += 1
        actor.state, actor.since = state, now
        if state is State.READY:
            self._crashes.became_ready()
        self.takers.update(actor)
        self.note_nobody(now)

    def end(self, actor: Actor, now: float, *, is_stuck: bool) -> None:
        """Forget an actor; nothing it says from now on counts."""
        self.spend(now)
        self.takers.remove(actor)
        self.states[actor.state] -= 1
        self.num_busy -= bool(actor.tasks)
        self.num_withdrawing -= sum(held.is_withdrawing for held in actor.tasks)
        del self.actors[actor.actor_id]
        actor.slot.actor_id = None
        self.actions.append(Kill(actor_id=actor.actor_id, is_stuck=is_stuck))
        self.note_nobody(now)

    def replace(
        self, actor: Actor, cause: Cause, reason: str, now: float, *, num_wanted: int
    ) -> None:
        """Have a successor come after a pause, where one is wanted.

        Raises:
            RolloutLostError: the crash budget is spent.
        """
        self.metrics.replaced(cause)
        slot = actor.slot
        if not slot.is_wanted:
            return
        slot.failures_in_a_row += 1
        pause = pause_s(slot.failures_in_a_row, self._draw)
        logger.warning(
            "lost actor=%s cause=%s next_in_s=%.1f reason=%r", actor.actor_id, cause, pause, reason
        )
        self._crashes.spend(
            now,
            num_actors=num_wanted,
            actor_id=actor.actor_id,
            reason=reason,
            was_starting=actor.state is not State.READY,
        )
        slot.respawn_at = now + pause
        heapq.heappush(self._alarms, (slot.respawn_at, next(self._numbers), slot.index))

    def note_nobody(self, now: float) -> None:
        if any(self.states[state] for state in State if state is not State.PENDING):
            self.nobody_since = None
        elif self.nobody_since is None:
            self.nobody_since = now

    def check_anybody(self, now: float, *, num_wanted: int) -> None:
        """Raise RolloutLostError when no actor has a process for longer than one takes to start."""
        limit_s = self.settings.start_deadline_s
        if self.nobody_since is None or now - self.nobody_since < limit_s:
            return
        raise RolloutLostError(
            f"rollout: no actor has a process since {limit_s:g} s (cluster.start_deadline_s); of "
            f"{num_wanted} wanted {self.states[State.PENDING]} wait for room in the cluster. Lower "
            "rollout.num_actors or its num_cpus, num_gpus or sequence_parallel, add nodes, or "
            "raise cluster.start_deadline_s when nodes come slowly; then resume the run."
            + said_of(self.settings.node_group, "rollout.node_group")
        )

    # Time

    def arm(self, actor: Actor) -> None:
        """Have the actor looked at when the first of its limits comes."""
        due = min((when for when, _ in limits(actor, self.settings)), default=math.inf)
        if due < math.inf and (actor.armed_at is None or due < actor.armed_at):
            actor.armed_at = due
            heapq.heappush(self._alarms, (due, next(self._numbers), actor.actor_id))

    @property
    def next_alarm(self) -> float:
        return self._alarms[0][0] if self._alarms else math.inf

    def check_due(self, now: float) -> list[tuple[Actor, str]]:
        """Do what is due: successors, probes; return stuck actors with what is wrong with them."""
        stuck: list[tuple[Actor, str]] = []
        pending: list[Actor] = []
        while self._alarms and self._alarms[0][0] <= now:
            due, _, who = heapq.heappop(self._alarms)
            if isinstance(who, int):
                slot = self.slots[who]
                if slot.respawn_at is not None and slot.respawn_at <= now:
                    slot.respawn_at = None
                    self.wait_to_start(slot)
            elif who in self.actors and self.actors[who].armed_at == due:
                actor = self.actors[who]
                if actor.state is State.PENDING:
                    actor.is_reported, actor.armed_at = True, None
                    pending.append(actor)
                elif wrong := self._check(actor, now):
                    stuck.append((actor, wrong))
        if pending:
            logger.warning(
                "actors=%d have no process since seconds=%.0f, first=%s: the cluster has no room, "
                "or starts them slowly. Raise cluster.num_cpus of a local one, add nodes, or lower "
                "rollout.num_cpus, num_gpus or the number of actors.%s",
                len(pending),
                now - pending[0].since,
                pending[0].actor_id,
                said_of(self.settings.node_group, "rollout.node_group"),
            )
        return stuck

    def _check(self, actor: Actor, now: float) -> str:
        """Return what is wrong with an actor, "" for nothing; probe it when it is time to."""
        actor.armed_at = None
        for due, wrong in limits(actor, self.settings):
            if due > now:
                continue
            if wrong:
                return wrong
            actor.probe_sent = now
            self.actions.append(Probe(actor_id=actor.actor_id))
        self.arm(actor)
        return ""

    def begin_limits_anew(self, now: float) -> None:
        """For a driver that did not run itself: the actors' answers are on their way."""
        for actor in self.actors.values():
            actor.since = actor.head_since = actor.progressed = actor.staging_since = now
            actor.next_probe, actor.probe_sent, actor.armed_at = now, None, None
            if actor.canary_since is not None:
                actor.canary_since = now
            self.arm(actor)
        if self.nobody_since is not None:
            self.nobody_since = now

    def spend(self, now: float) -> None:
        """Account for the time until now, before what is counted changes."""
        self.metrics.spent(
            now,
            num_ready=self.states[State.READY],
            num_busy=self.num_busy,
            is_queued=len(self.queue) > 0,
        )
