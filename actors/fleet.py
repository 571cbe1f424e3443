"""All decisions about the rollout actors of a run: plain logic, no Ray, no threads, no clock.

    submitted --> queue --> the actor's line (one it samples, one that waits) --> sampled
                    ^                 |  actor died or is stuck: the first of its line is Lost,
                    +-- not started --+  what waited behind it goes back to the queue
    slot --> PENDING --> LOADING --> JOINING (weights, canary) --> READY --> leaving --> gone
                 ^----------- pause, crash budget ---- lost -----------+

A shell drives it so (`fleet_shell.py` with Ray; the simulator in virtual time): call the method
that says what happened, then `poll(now)`, and do each action it returns; every action but Kill and
Lost is answered later by the event its docstring names, or by `died`. Call `poll` again after each
event, and at `next_wakeup()` at the latest. Times are seconds of any one clock that never goes
back. Events of actors that are gone, and answers nobody waits for, are ignored: a stopped process
that wakes up after it was replaced cannot hand anything in. The shell keeps tasks, tensors and
weights; the fleet knows ids and versions.
"""

from __future__ import annotations

import logging
import math

from rlvid.actors.answers import ActorView
from rlvid.actors.crew import Crew
from rlvid.actors.feeder import Feeder
from rlvid.actors.fleet_metrics import FleetMetrics
from rlvid.actors.fleet_records import (
    Action,
    Actor,
    Cause,
    FleetSettings,
    FleetTask,
    Publish,
    Reload,
    RolloutLostError,
    State,
)
from rlvid.actors.fleet_size import FleetSize
from rlvid.actors.fleet_views import gauges, view
from rlvid.actors.task_queue import fits
from rlvid.actors.updater import Updater

__all__ = ["Fleet", "FleetSettings"]

logger = logging.getLogger(__name__)

PAUSE_S = 5.0
"""A `poll` that comes so much late says that the driver itself was stopped, not the actors."""


class Fleet:
    """Slots, actors, queue and versions; see the module for how to drive it."""

    def __init__(self, settings: FleetSettings, num_actors: int, *, seed: int = 0) -> None:
        self._settings = settings
        self._crew = Crew(settings, seed=seed)
        self._feeder = Feeder(self._crew)
        self._updater = Updater(self._crew, self._feeder)
        self._size = FleetSize(
            settings, self._crew, self._feeder, self._updater, num_actors=num_actors
        )
        self._has_opened = False
        """Whether an actor ever loaded the present policy."""
        self._promised = math.inf
        """When `poll` was to be called again."""

    # What happened

    def start(self, now: float) -> None:
        """Have the first actors started."""
        self._size.start(now)

    def appeared(self, actor_id: str, now: float) -> None:
        """The process is there and loads its model."""
        actor = self._crew.actors.get(actor_id)
        if actor is not None and actor.state is State.PENDING:
            self._crew.enter(actor, State.LOADING, now)
            actor.next_probe = now + self._settings.heartbeat_s
            self._crew.arm(actor)

    def opened(self, actor_id: str, now: float, *, device: str = "") -> None:
        """The policy is loaded, from files as yet."""
        actor = self._crew.actors.get(actor_id)
        if actor is None or actor.is_open:
            return
        self._has_opened = True
        actor.device = device or actor.device
        actor.held = actor.staging = actor.checked = actor.canary_since = None
        actor.next_probe, actor.probe_sent = now + self._settings.heartbeat_s, None
        self._crew.enter(actor, State.JOINING, now)
        self._updater.look_at(actor)
        self._updater.join(actor, now)

    def open_failed(self, actor_id: str, error: Exception, now: float) -> None:
        """Loading raised.

        Raises:
            Exception: `error`, when no actor ever loaded this policy: another one would not either.
        """
        actor = self._crew.actors.get(actor_id)
        if actor is None:
            return
        if not self._has_opened:
            raise error
        self._lose(actor, Cause.FAILED, f"could not load: {error}", now)

    def submit(self, task: FleetTask, now: float) -> None:
        """Queue a group.

        Raises:
            ValueError: a group of this lease is outstanding.
        """
        self._feeder.submit(task, now)

    def sampled(self, actor_id: str, lease_id: str, version: int, now: float) -> bool:
        """A group is there, sampled with weights of `version`.

        Returns:
            Whether it counts. False for a late answer, and for one with other weights than the task
            allows, which comes back as Lost.
        """
        found = self._feeder.answered(actor_id, lease_id, now)
        if found is None:
            return False
        actor, task = found
        actor.slot.failures_in_a_row = 0
        if fits(version, (task.min_version, task.max_version)):
            return True
        high = "any" if task.max_version is None else task.max_version
        reason = f"sampled with version {version}, expected {task.min_version} to {high}"
        self._feeder.hand_back(task, actor_id, Cause.STALE, reason)
        return False

    def failed(self, actor_id: str, lease_id: str, error: Exception, now: float) -> None:
        """Sampling raised where the process lives on.

        Raises:
            ValueError: `error`, what the user gave cannot be sampled by any actor.
        """
        found = self._feeder.answered(actor_id, lease_id, now)
        if found is None:
            return
        if isinstance(error, ValueError):
            raise error
        reason = f"{actor_id}: {type(error).__name__}: {error}"
        self._feeder.hand_back(found[1], actor_id, Cause.FAILED, reason)

    def withdrawn(self, actor_id: str, lease_id: str, now: float, *, is_ours: bool) -> None:
        """A task was taken back, or (`is_ours` False) the actor had begun with it."""
        self._feeder.withdrawn(actor_id, lease_id, now, is_ours=is_ours)

    def publish(self, publish: Publish, now: float) -> None:
        """There are newer weights; every actor takes them as soon as it can.

        Raises:
            ValueError: they are not newer than the last.
        """
        self._updater.publish(publish)

    def staged(self, actor_id: str, publish: Publish, now: float) -> None:
        """The actor has verified these weights; its next group is sampled with them."""
        actor = self._crew.actors.get(actor_id)
        if actor is not None:
            self._updater.staged(actor, publish, now)

    def stage_refused(self, actor_id: str, publish: Publish, reason: str, now: float) -> None:
        """What arrived is not what was published; the actor keeps what it had and fetches anew.

        Raises:
            RolloutLostError: it came to nothing `MAX_REFUSALS` times, and no actor ever took any.
        """
        actor = self._crew.actors.get(actor_id)
        if actor is None:
            return
        hopeless = self._updater.refused(actor, publish, reason)
        if hopeless:
            self._lose(actor, Cause.WEIGHTS, hopeless, now)

    def stage_unreachable(self, actor_id: str, publish: Publish, reason: str, now: float) -> None:
        """The bytes are gone with the node that held them, which is no fault of the actor's.

        It is tried again at each heartbeat; a restarted learner publishes anew meanwhile.
        """
        actor = self._crew.actors.get(actor_id)
        if actor is not None:
            self._updater.unreachable(actor, publish, reason)

    def distrusted(self, actor_id: str, reason: str, now: float) -> None:
        """The actor found that it does not sample with what was published."""
        actor = self._crew.actors.get(actor_id)
        if actor is not None:
            self.metrics.counts["weights/rejected/count"] += 1
            self._lose(actor, Cause.WEIGHTS, reason, now)

    def set_canary(self, publish: Publish, now: float) -> None:
        """From now on actors with these weights are compared with the learner's velocity."""
        self._updater.set_canary(publish, now)

    def canary_answered(
        self, actor_id: str, publish: Publish | None, difference: str | None, now: float
    ) -> None:
        """An actor gave its velocity.

        Args:
            publish: the weights it used.
            difference: says how it differs from the learner's; None when it does not.

        Raises:
            RolloutLostError: it differs and no other actor's ever fitted.
        """
        actor = self._crew.actors.get(actor_id)
        if actor is None:
            return
        differs = self._updater.canary_answered(actor, publish, difference, now)
        if differs:
            self._lose(actor, Cause.CANARY, differs, now)

    def progress(self, actor_id: str, num_steps: int, now: float) -> None:
        """The actor answered a probe: so many denoising steps are done since it began."""
        actor = self._crew.actors.get(actor_id)
        if actor is None:
            return
        if num_steps > actor.num_steps:
            actor.num_steps, actor.progressed = num_steps, now
        actor.probe_sent = None
        actor.next_probe = now + self._settings.heartbeat_s
        self._updater.look_at(actor)
        self._crew.arm(actor)

    def died(self, actor_id: str, reason: str, now: float) -> None:
        """The process is gone.

        Raises:
            RolloutLostError: the crash budget is spent.
        """
        actor = self._crew.actors.get(actor_id)
        if actor is not None:
            self._lose(actor, Cause.DIED, f"its actor died: {reason}", now)

    def reload(self, now: float) -> None:
        """The policy is another one, from files; who is still loading the old one starts anew.

        Raises:
            ValueError: a group is outstanding, which would be sampled with either.
        """
        crew = self._crew
        if len(crew.queue) or any(actor.tasks for actor in crew.actors.values()):
            raise ValueError("rollout: collect all groups before the policy is changed")
        self._updater.forget()
        self._has_opened = False
        for actor in list(crew.actors.values()):
            if actor.is_open and not actor.is_leaving:
                actor.staging, actor.canary_since, actor.probe_sent = None, None, None
                crew.enter(actor, State.LOADING, now)
                crew.actions.append(Reload(actor_id=actor.actor_id))
                crew.arm(actor)
            else:
                crew.end(actor, now, is_stuck=False)
        self._size.fit(now)

    def scale(self, num_actors: int, now: float) -> None:
        """Have so many actors from now on; who must go finishes its group first.

        Raises:
            ValueError: fewer than one.
        """
        self._size.scale(num_actors, now)

    def note_learner_idle(self, frac: float) -> None:
        """The share of its time that the learner waits for groups, for the autoscaler."""
        self._size.learner_idle_frac = frac

    # What to do

    def poll(self, now: float) -> list[Action]:
        """Return what is to be done now, in order.

        Raises:
            RolloutLostError: the crash budget is spent, or there is no actor for too long.
        """
        crew = self._crew
        if now - self._promised >= PAUSE_S:
            late_s = now - self._promised
            logger.warning("the driver did not run for seconds=%.1f; limits begin anew", late_s)
            crew.begin_limits_anew(now)
        for actor, wrong in crew.check_due(now):
            took_too_long = now - actor.since >= self._settings.start_deadline_s
            if actor.state is State.LOADING and took_too_long and not self._has_opened:
                raise RolloutLostError(
                    f"{actor.actor_id}: {wrong}, as the first of all; raise it when a model loads "
                    "slowly, or look at the actor's log in the Ray session folder"
                )
            self._lose(actor, Cause.STUCK, wrong, now)
        crew.check_due(now)  # successors that come at once
        self._size.autoscale(now)
        crew.start_waiting(now)
        crew.check_anybody(now, num_wanted=self._size.num_wanted)
        self._updater.stage(now)
        self._feeder.give_up_stale(self._updater.newest)
        self._feeder.assign(now)
        actions, crew.actions = crew.actions, []
        return actions

    def next_wakeup(self) -> float:
        """Return when `poll` should be called again if nothing happens before; may be infinite."""
        times = [self._crew.next_alarm, self._size.next_decision()]
        if self._crew.nobody_since is not None:
            times.append(self._crew.nobody_since + self._settings.start_deadline_s)
        self._promised = min(times)
        return self._promised

    # State for others

    @property
    def num_actors(self) -> int:
        """Actors wanted."""
        return self._size.num_wanted

    @property
    def metrics(self) -> FleetMetrics:
        return self._crew.metrics

    @property
    def newest(self) -> Publish | None:
        return self._updater.newest

    @property
    def num_queued(self) -> int:
        return len(self._crew.queue)

    @property
    def actors(self) -> tuple[Actor, ...]:
        """Every actor there is, for reading, in the order of their slots."""
        return tuple(sorted(self._crew.actors.values(), key=lambda actor: actor.slot.index))

    def views(self, now: float) -> list[ActorView]:
        """Return what every actor does, in the order of their slots."""
        return [view(actor, now) for actor in self.actors]

    @property
    def is_complete(self) -> bool:
        """Whether as many actors as wanted are ready."""
        num_ready = sum(actor.state is State.READY for actor in self._staying())
        return num_ready >= self._size.num_wanted

    @property
    def is_up_to_date(self) -> bool:
        """Whether every open actor that stays, and at least one, has the newest weights."""
        staying, newest = self._staying(), self._updater.newest
        return bool(staying) and (
            newest is None or all(a.held is not None and a.held >= newest for a in staying)
        )

    @property
    def is_checked(self) -> bool:
        """Whether every open actor that stays, and at least one, answered the canary rightly.

        One that has gone on to newer weights meanwhile is not waited for.
        """
        staying, canary = self._staying(), self._updater.canary
        return bool(staying) and all(
            actor.checked == canary
            or (canary is not None and actor.held is not None and actor.held > canary)
            for actor in staying
        )

    def note_time(self, now: float) -> None:
        """Bring the shares of time up to now, before metrics are taken."""
        self._crew.spend(now)

    def gauges(self) -> dict[str, float]:
        """Return the present numbers under the names of the metrics table."""
        return gauges(self._crew, newest=self._updater.newest, num_wanted=self._size.num_wanted)

    # Inside

    def _staying(self) -> list[Actor]:
        return [a for a in self._crew.actors.values() if a.is_open and not a.is_leaving]

    def _lose(self, actor: Actor, cause: Cause, reason: str, now: float) -> None:
        """Give up an actor: its group comes back, what had not begun is queued, a new one comes."""
        self._crew.end(actor, now, is_stuck=cause is Cause.STUCK)
        self._feeder.lost_with(actor, cause, reason)
        self._crew.replace(actor, cause, reason, now, num_wanted=self._size.num_wanted)
