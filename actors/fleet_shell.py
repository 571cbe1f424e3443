"""Does what the fleet says at the actors of a pool, and tells it what came of it.

The fleet knows ids and versions; what belongs to them is kept here: tasks, weights, receipts, the
canary, and what goes back to the driver. The pool's thread runs it, and guards it (`pool_loop.py`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlvid.actors.answers import LostGroup, SampledGroup
from rlvid.actors.fleet import Fleet
from rlvid.actors.fleet_records import (
    Action,
    AskCanary,
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
from rlvid.actors.gang_process import GangError
from rlvid.actors.ray_actor import ActorSet, arguments
from rlvid.actors.worker import WorkerSettings
from rlvid.ray_errors import ACTOR_LOST, cause_of, first_line, is_lost_object
from rlvid.records import GroupSummary, GroupTask, WeightsManifest, WeightsReceipt
from rlvid.weights import WeightsError, check_canary


@dataclass(frozen=True, slots=True)
class Canary:
    """A fixed input, and what the learner makes of it with the weights of `publish`."""

    publish: Publish
    question: tuple[Any, Any, str]
    """(latents, sigma, text)."""
    velocity: Any
    tolerance: float


class FleetShell:
    """Turns each action of the fleet into a call of an actor, and each answer into an event."""

    def __init__(
        self,
        fleet: Fleet,
        actors: ActorSet,
        settings: WorkerSettings,
        *,
        on_sampled: Callable[[], None],
    ) -> None:
        """`on_sampled` is called whenever a group has been added to `results`."""
        self.fleet = fleet
        self.actors = actors
        self.settings = settings
        """What the next actor is opened with."""
        self.tasks: dict[str, GroupTask] = {}
        """By lease, those that are outstanding."""
        self.results: list[SampledGroup | LostGroup] = []
        self.weights: tuple[WeightsManifest, Any] | None = None
        self.receipts: dict[str, WeightsReceipt] = {}
        """By actor, of the newest publish it took."""
        self.canary: Canary | None = None
        self.seconds: dict[str, float] = {}
        """Longest times since they were last taken, by metric."""
        self.losses: Counter[str] = Counter()
        """By prompt."""
        self._notify = on_sampled

    def do(self, action: Action) -> None:
        """Begin an action; Kill and Lost are over with it."""
        actor_id = action.actor_id
        actors = self.actors
        match action:
            case Spawn():
                appeared = partial(self._on_appeared, actor_id)
                actors.spawn(actor_id, self.settings, appeared, partial(self._on_opened, actor_id))
            case Reload():
                handle = partial(self._on_opened, actor_id)
                actors.call(actor_id, "use_policy", handle, self.settings.policy)
            case Sample():
                task = self.tasks[action.task.lease_id]
                actors.sample(actor_id, task, partial(self._on_sampled, actor_id, task.lease_id))
            case Withdraw():
                handle = partial(self._on_withdrawn, actor_id, action.lease_id)
                actors.call(actor_id, "withdraw", handle, action.lease_id)
            case Stage():
                self._stage(actor_id, action.publish)
            case AskCanary():
                assert self.canary is not None, "the fleet asks for one that was set"
                handle = partial(self._on_canary, actor_id, self.canary)
                actors.call(actor_id, "canary", handle, *self.canary.question)
            case Probe():
                actors.call(actor_id, "progress", partial(self._on_progress, actor_id))
            case Kill():
                self.receipts.pop(actor_id, None)
                actors.kill(actor_id, is_stuck=action.is_stuck)
            case Lost():
                self._hand_back(action)

    def _stage(self, actor_id: str, publish: Publish) -> None:
        assert self.weights is not None, "the fleet stages what was published"
        manifest, payload = self.weights
        assert publish == manifest.order, f"newest is {manifest.order}, asked for {publish}"
        called = time.monotonic()
        handle = partial(self._on_staged, actor_id, publish, manifest.digest, called)
        self.actors.call(actor_id, "stage_weights", handle, manifest, *arguments(payload))

    def _hand_back(self, lost: Lost) -> None:
        task = lost.task
        del self.tasks[task.lease_id]
        if lost.cause.blames_prompt:
            self.losses[task.prompt_id] += 1
        self.results.append(
            LostGroup(
                group_id=task.group_id,
                lease_id=task.lease_id,
                prompt_id=task.prompt_id,
                actor_id=lost.actor_id,
                cause=lost.cause,
                reason=lost.reason,
            )
        )

    # What happened at an actor

    def _on_appeared(self, actor_id: str, future: Future[Any]) -> None:
        if future.exception() is None:
            self.actors.is_at(actor_id, future.result())
            self.fleet.appeared(actor_id, time.monotonic())
        else:
            self._died(actor_id, future)

    def _on_opened(self, actor_id: str, future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            self.fleet.opened(actor_id, time.monotonic(), device=future.result() or "")
        elif not self._died(actor_id, future):
            self.fleet.open_failed(actor_id, cause_of(error), time.monotonic())

    def _on_sampled(
        self, actor_id: str, lease_id: str, group: Any, future: Future[GroupSummary | None]
    ) -> None:
        error, now = future.exception(), time.monotonic()
        if error is not None:
            if self._died(actor_id, future):
                return
            cause = cause_of(error)
            if isinstance(cause, WeightsError):
                self.fleet.distrusted(actor_id, first_line(cause), now)
            else:
                self.fleet.failed(actor_id, lease_id, cause, now)
            return
        summary = future.result()
        if summary is None:  # withdrawn before its turn
            return
        if self.fleet.sampled(actor_id, lease_id, summary.policy_version, now):
            del self.tasks[lease_id]
            self._note_seconds("weights/swap_pause/seconds", summary.swap_s)
            self.results.append(SampledGroup(group=group, summary=summary))
            self._notify()

    def _on_withdrawn(self, actor_id: str, lease_id: str, future: Future[bool]) -> None:
        if not self._died(actor_id, future):
            is_ours = future.result()
            self.fleet.withdrawn(actor_id, lease_id, time.monotonic(), is_ours=is_ours)

    def _on_staged(
        self,
        actor_id: str,
        publish: Publish,
        digest: str,
        called: float,
        future: Future[WeightsReceipt],
    ) -> None:
        if self._died(actor_id, future):
            return
        error, now = future.exception(), time.monotonic()
        if error is not None:
            reason = first_line(cause_of(error))
            if is_lost_object(error):
                self.fleet.stage_unreachable(actor_id, publish, reason, now)
            else:
                self.fleet.stage_refused(actor_id, publish, reason, now)
            return
        receipt = future.result()
        if receipt.digest != digest or (receipt.incarnation, receipt.version) != publish:
            reason = f"took {receipt}, published was {publish} with digest {digest}"
            self.fleet.stage_refused(actor_id, publish, reason, now)
            return
        if actor_id in self.actors:
            self.receipts[actor_id] = receipt
        # Ray fetches objects before the actor's code runs: what is not work there was the way.
        transport_s = now - called - receipt.copy_s - receipt.verify_s
        self._note_seconds("weights/transport/seconds", transport_s)
        self._note_seconds("weights/verify/seconds", receipt.verify_s)
        self.fleet.staged(actor_id, publish, now)

    def _on_canary(self, actor_id: str, canary: Canary, future: Future[Any]) -> None:
        if self._died(actor_id, future):
            return
        error, now = future.exception(), time.monotonic()
        if error is not None:
            self.fleet.distrusted(actor_id, first_line(cause_of(error)), now)
            return
        order, velocity = future.result()
        difference = None
        try:
            check_canary(actor_id, velocity, canary.velocity, canary.tolerance)
        except WeightsError as wrong:
            difference = str(wrong)
        publish = Publish(*order) if canary is self.canary else None
        self.fleet.canary_answered(actor_id, publish, difference, now)

    def _on_progress(self, actor_id: str, future: Future[int]) -> None:
        if not self._died(actor_id, future):
            self.fleet.progress(actor_id, future.result(), time.monotonic())

    def _died(self, actor_id: str, future: Future[Any]) -> bool:
        """Tell the fleet, and return True, when a call ended since the process is gone, or one that
        it samples with."""
        error = future.exception()
        if error is None:
            return False
        if not isinstance(error, ACTOR_LOST):
            error = cause_of(error)
            if not isinstance(error, GangError):
                return False
        self.fleet.died(actor_id, first_line(error), time.monotonic())
        return True

    def _note_seconds(self, name: str, seconds: float) -> None:
        self.seconds[name] = max(self.seconds.get(name, 0.0), seconds)
