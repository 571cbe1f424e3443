"""Tasks of the fleet: to whom they are given, taken back from, and how they end."""

from __future__ import annotations

from collections import Counter

from rlvid.actors.crew import Crew
from rlvid.actors.fleet_records import (
    MAX_TASKS,
    Actor,
    Cause,
    FleetTask,
    Held,
    Lost,
    Publish,
    Sample,
    State,
    Withdraw,
)
from rlvid.actors.task_queue import fits


class Feeder:
    """Every task that is outstanding is in the queue or in one actor's line."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._leases: set[str] = set()
        self._capped: Counter[int] = Counter()
        """`max_version` of the tasks that are outstanding."""

    @property
    def newest_allowed(self) -> int | None:
        """The newest version that every outstanding task may have; None: any."""
        return min(self._capped, default=None)

    def submit(self, task: FleetTask, now: float) -> None:
        """See `Fleet.submit`."""
        if task.lease_id in self._leases:
            raise ValueError(
                f"rollout: lease {task.lease_id!r} of group {task.group_id} is outstanding; "
                "lease a group anew before it is submitted again"
            )
        self._crew.spend(now)
        self._leases.add(task.lease_id)
        self._crew.queue.add(task)
        if task.max_version is not None:
            self._capped[task.max_version] += 1

    def assign(self, now: float) -> None:
        """Give tasks to idle actors, then one more to each that samples; let nobody idle."""
        crew = self._crew
        queue, takers = crew.queue, crew.takers
        crew.spend(now)
        while len(queue) and (found := queue.first_for(takers.versions(0))):
            self._send(*found, num_tasks=0, now=now)
        if not crew.settings.prefetch:
            return
        # Who is idle now and may not take them as yet will take them as soon as its weights come.
        # Until then the first ones stay in the queue: behind the work of another actor they would
        # hold up a learner that takes groups in order.
        spare = 0 if takers.count(0) else len(queue)
        while spare > 0 and (found := queue.first_for(takers.versions(1))):
            self._send(*found, num_tasks=1, now=now)
            spare -= 1
        self._take_back_for_idle()

    def answered(self, actor_id: str, lease_id: str, now: float) -> tuple[Actor, FleetTask] | None:
        """Take an answered task off its actor; None for what nobody waits for."""
        actor = self._crew.actors.get(actor_id)
        held = _find(actor, lease_id) if actor is not None else None
        if actor is None or held is None:
            self._crew.metrics.counts["rollout/groups/late"] += 1
            return None
        self._crew.spend(now)
        self._crew.num_withdrawing -= held.is_withdrawing
        actor.tasks.remove(held)
        self._leaves(held.task)
        # An answer says what a probe would: fast groups need none.
        actor.next_probe = now + self._crew.settings.heartbeat_s
        self._after_task(actor, now)
        return actor, held.task

    def withdraw(self, actor: Actor, held: Held) -> None:
        """Ask for a task back that waits at an actor."""
        if held.is_withdrawing:
            return
        held.is_withdrawing = True
        self._crew.num_withdrawing += 1
        lease_id = held.task.lease_id
        self._crew.actions.append(Withdraw(actor_id=actor.actor_id, lease_id=lease_id))

    def withdrawn(self, actor_id: str, lease_id: str, now: float, *, is_ours: bool) -> None:
        """See `Fleet.withdrawn`."""
        crew = self._crew
        actor = crew.actors.get(actor_id)
        held = _find(actor, lease_id) if actor is not None else None
        if actor is None or held is None or not held.is_withdrawing:
            return
        crew.spend(now)
        held.is_withdrawing = False
        crew.num_withdrawing -= 1
        if not is_ours:
            return
        crew.metrics.counts["rollout/groups/withdrawn"] += 1
        actor.tasks.remove(held)
        crew.queue.add(held.task)
        self._after_task(actor, now)

    def lost_with(self, actor: Actor, cause: Cause, reason: str) -> None:
        """Hand back what a lost actor sampled; what only waited there goes to the queue."""
        for place, held in enumerate(actor.tasks):
            if place:
                self._crew.queue.add(held.task)
            else:
                self.hand_back(held.task, actor.actor_id, cause, f"{actor.actor_id}: {reason}")

    def hand_back(self, task: FleetTask, actor_id: str, cause: Cause, reason: str) -> None:
        """End a task without a group."""
        self._leaves(task)
        lost = Lost(task=task, actor_id=actor_id, cause=cause, reason=reason)
        self._crew.actions.append(lost)

    def give_up_stale(self, newest: Publish | None) -> None:
        """Hand back what may only be sampled with weights that no actor has any more."""
        if not self._capped or newest is None or min(self._capped) >= newest.version:
            return
        crew = self._crew
        held = {a.version for a in crew.actors.values() if a.state is State.READY}
        for task in crew.queue.below(newest.version):
            if any(fits(version, (task.min_version, task.max_version)) for version in held):
                continue
            crew.queue.remove(task)
            reason = f"no actor holds a version of at most {task.max_version} any more"
            self.hand_back(task, "", Cause.STALE, reason)

    def _send(self, task: FleetTask, version: int, *, num_tasks: int, now: float) -> None:
        crew = self._crew
        actor = crew.takers.first(num_tasks, version)
        crew.queue.remove(task)
        if not actor.tasks:
            actor.head_since = actor.progressed = now
            crew.num_busy += 1
        actor.tasks.append(Held(task))
        crew.takers.update(actor)
        crew.arm(actor)
        crew.actions.append(Sample(actor_id=actor.actor_id, task=task))

    def _take_back_for_idle(self) -> None:
        """Have idle actors do what waits behind the work of others."""
        takers = self._crew.takers
        wanted = takers.count(0) - self._crew.num_withdrawing
        if wanted <= 0:
            return
        idle = takers.versions(0)
        for actor in takers.latest(MAX_TASKS):
            held = actor.tasks[-1]
            allowed = (held.task.min_version, held.task.max_version)
            if held.is_withdrawing or not any(fits(version, allowed) for version in idle):
                continue
            self.withdraw(actor, held)
            wanted -= 1
            if not wanted:
                return

    def _after_task(self, actor: Actor, now: float) -> None:
        actor.head_since = actor.progressed = now
        if not actor.tasks:
            self._crew.num_busy -= 1
        if actor.is_leaving and not actor.tasks:
            self._crew.end(actor, now, is_stuck=False)
            return
        self._crew.takers.update(actor)
        self._crew.arm(actor)

    def _leaves(self, task: FleetTask) -> None:
        """The task is no longer outstanding here; saying so again changes nothing."""
        if task.lease_id not in self._leases:
            return
        self._leases.remove(task.lease_id)
        if task.max_version is not None:
            self._capped[task.max_version] -= 1
            if not self._capped[task.max_version]:
                del self._capped[task.max_version]


def _find(actor: Actor, lease_id: str) -> Held | None:
    return next((held for held in actor.tasks if held.task.lease_id == lease_id), None)
