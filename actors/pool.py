"""The rollout actors of a run on Ray: does what the fleet says, and tells it what happens.

    submit(task) --> fleet --> actor samples --> collect() --> SampledGroup
                                  |  died, stuck or failed
                                  +--> replaced and brought to the newest weights; LostGroup

The driver owns the pool. Every decision is the fleet's (`fleet.py`), which a thread of the pool
drives: Ray's futures and the driver's calls wake it, nothing is polled. Which actor samples a group
does not matter to the result, because every seed is in the task.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rlvid.actors.answers import ActorView, LostGroup, SampledGroup
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
    RolloutLostError,
    Sample,
    Spawn,
    Stage,
    Withdraw,
)
from rlvid.actors.ray_actor import ActorSet, arguments, cause_of, is_death
from rlvid.actors.worker import WorkerSettings
from rlvid.bell import Bell
from rlvid.config import LearnerConfig, ModelConfig, RolloutConfig, WeightsConfig
from rlvid.models.policy import Policy
from rlvid.records import GroupSummary, GroupTask, WeightsManifest, WeightsReceipt
from rlvid.weights import WeightsError, check_canary

__all__ = ["LostGroup", "RolloutLostError", "RolloutPool", "SampledGroup"]

logger = logging.getLogger(__name__)

LONGEST_SLEEP_S = 60.0


@dataclass(frozen=True, slots=True)
class _Canary:
    publish: Publish
    question: tuple[Any, Any, str]
    velocity: Any
    tolerance: float


class RolloutPool:
    """Rollout actors under supervision; their number may change at any time."""

    def __init__(
        self,
        policy: Policy,
        model_config: ModelConfig,
        rollout_config: RolloutConfig,
        learner_config: LearnerConfig | None,
        *,
        num_threads: int,
        start_deadline_s: float,
        weights_config: WeightsConfig | None = None,
        bell: Bell | None = None,
    ) -> None:
        """`bell` is rung when there is something to collect, or the pool has ended by an error."""
        self._settings = WorkerSettings(
            use=rollout_config.worker,
            policy=policy,
            model_config=model_config,
            learner_config=learner_config,
            weights_config=weights_config,
            num_threads=num_threads,
            options=rollout_config.worker_options,
        )
        self._start_deadline_s = start_deadline_s
        self._bell = bell
        self._fleet = Fleet(
            fleet_settings(rollout_config, start_deadline_s), rollout_config.num_actors
        )
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._actors = ActorSet(rollout_config, post=self._events.put)
        self._changed = threading.Condition(threading.RLock())
        """Guards all below, and is notified after each turn of the thread."""
        self._tasks: dict[str, GroupTask] = {}
        self._results: list[SampledGroup | LostGroup] = []
        self._num_outstanding = 0
        self._weights: tuple[WeightsManifest, Any] | None = None
        self._receipts: dict[str, WeightsReceipt] = {}
        self._canary: _Canary | None = None
        self._seconds: dict[str, float] = {}
        self._losses: Counter[str] = Counter()
        self._error: BaseException | None = None
        self._stops = False
        self._thread = threading.Thread(target=self._run, name="rollout-pool", daemon=True)

    # Life

    def start(self) -> None:
        """Create the actors; they load their models while the caller goes on."""
        with self._changed:
            self._fleet.start(time.monotonic())
        self._thread.start()

    def wait_ready(self) -> None:
        """Block until every actor has loaded its model.

        Raises:
            RolloutLostError: not all have in the time they may take.
            Exception: what loading raised, e.g. ValueError for a missing folder.
        """
        self._wait(lambda: self._fleet.is_complete, self._start_deadline_s, "loading the model")

    def shutdown(self) -> None:
        """End the thread and the actors; groups in flight are forgotten."""
        with self._changed:
            self._stops = True
        self._events.put(_nothing)
        if self._thread.is_alive():
            self._thread.join(timeout=30.0)
        self._actors.kill_all()

    # Groups

    def submit(
        self, task: GroupTask, *, min_version: int = -1, max_version: int | None = None
    ) -> None:
        """Have a group sampled by an actor with weights of these versions.

        Groups are begun in the order of their ids. One that may only have weights that are older
        than the newest publish holds that publish back until it is sampled.

        Raises:
            ValueError: its lease is outstanding.
        """
        wanted = FleetTask(
            lease_id=task.lease_id,
            group_id=task.group_id,
            prompt_id=task.prompt.prompt_id,
            min_version=min_version,
            max_version=max_version,
        )
        with self._changed:
            self._check_alive()
            self._fleet.submit(wanted, time.monotonic())
            self._tasks[task.lease_id] = task
            self._num_outstanding += 1
        self._events.put(_nothing)

    def collect(self, timeout_s: float) -> list[SampledGroup | LostGroup]:
        """Return what finished or was lost, waiting at most `timeout_s` for the first.

        Raises:
            RolloutLostError: more actors were lost than the crash budget allows.
            Exception: what sampling raised, e.g. ValueError for a clip size that does not divide.
        """
        with self._changed:
            if timeout_s > 0.0:
                self._changed.wait_for(
                    lambda: self._results or self._error or not self._num_outstanding, timeout_s
                )
            results, self._results = self._results, []
            self._num_outstanding -= len(results)
            if not results:
                self._check_alive()
            return results

    @property
    def num_outstanding(self) -> int:
        """Groups submitted and not yet collected."""
        with self._changed:
            return self._num_outstanding

    @property
    def losses_by_prompt(self) -> Mapping[str, int]:
        """Prompt id to the actors it cost and the exceptions it raised in this run."""
        with self._changed:
            return dict(self._losses)

    # Weights

    def begin_publish(self, manifest: WeightsManifest, payload: Any) -> None:
        """Bring every actor to these weights, each beside what it samples; returns at once.

        Raises:
            ValueError: they are not newer than the last.
        """
        with self._changed:
            self._check_alive()
            self._fleet.publish(Publish(*manifest.order), time.monotonic())
            self._weights = (manifest, payload)
        self._events.put(_nothing)

    def wait_version(self, version: int, deadline_s: float) -> list[WeightsReceipt]:
        """Block until every open actor has the newest publish, and return their receipts.

        Raises:
            ValueError: `version` was not published.
            RolloutLostError: an actor did not take it in time.
        """
        with self._changed:
            newest = self._fleet.newest
            if newest is None or newest.version < version:
                raise ValueError(
                    f"rollout: version {version} was not published, the newest is {newest}; "
                    "call begin_publish first"
                )
        self._wait(lambda: self._fleet.is_up_to_date, deadline_s, f"taking weights {version}")
        with self._changed:
            open_ids = [actor.actor_id for actor in self._fleet.actors if actor.held is not None]
            return [self._receipts[actor_id] for actor_id in open_ids]

    def publish(
        self, manifest: WeightsManifest, payload: Any, deadline_s: float
    ) -> list[WeightsReceipt]:
        """Hand the weights to every actor and return their receipts; see `begin_publish`."""
        self.begin_publish(manifest, payload)
        return self.wait_version(manifest.version, deadline_s)

    def use_policy(self, policy: Policy, deadline_s: float) -> None:
        """Make every actor sample with a policy from files (evaluation)."""
        with self._changed:
            self._check_alive()
            self._settings = replace(self._settings, policy=policy)  # a replacement loads it
            self._weights = self._canary = None
            self._receipts.clear()
            self._fleet.reload(time.monotonic())
        self._events.put(_nothing)
        self._wait(lambda: self._fleet.is_complete, deadline_s, "loading a policy")

    def set_canary(
        self,
        latents: Any,
        sigma: Any,
        text: str,
        velocity: Any,
        tolerance: float,
        order: tuple[int, int] | None = None,
    ) -> None:
        """Compare each actor's velocity with the learner's, now and whenever one joins.

        An actor that holds other weights than those of `order` is not asked until it does; one
        whose answer differs is replaced, and ends the run when no other's ever fitted.

        Args:
            order: (incarnation, version) of the weights that gave `velocity`; None: the newest.
        """
        with self._changed:
            self._check_alive()
            publish = Publish(*order) if order else self._fleet.newest
            if publish is None:
                raise ValueError("rollout: a canary needs a publish; call begin_publish first")
            self._canary = _Canary(publish, (latents, sigma, text), velocity, tolerance)
            self._fleet.set_canary(publish, time.monotonic())
        self._events.put(_nothing)

    def wait_canary(self, deadline_s: float) -> None:
        """Block until every open actor with the canary's weights has answered it rightly."""
        self._wait(lambda: self._fleet.is_checked, deadline_s, "answering the canary")

    def canaries(self, latents: Any, sigma: Any, text: str, deadline_s: float) -> list[Any]:
        """Return each actor's velocity for a fixed input, in the order of `actor_ids`."""
        answers: list[tuple[str, Future[Any]]] = []
        with self._changed:
            for actor_id in self.actor_ids:
                answer: Future[Any] = Future()
                handle = partial(_copy, answer)
                self._actors.call(actor_id, "canary", handle, latents, sigma, text)
                answers.append((actor_id, answer))
        found = []
        for actor_id, answer in answers:
            try:
                found.append(answer.result(timeout=deadline_s)[1])
            except TimeoutError as error:
                raise RolloutLostError(
                    f"{actor_id}: gave no canary in {deadline_s:g} s; look at its log"
                ) from error
        return found

    # Numbers

    def scale(self, num_actors: int) -> None:
        """Have so many actors from now on; those that go finish their group first."""
        with self._changed:
            self._check_alive()
            self._fleet.scale(num_actors, time.monotonic())
        self._events.put(_nothing)

    def note_learner_idle(self, frac: float) -> None:
        """The share of its time that the learner waits, for the autoscaler."""
        with self._changed:
            self._fleet.note_learner_idle(frac)

    @property
    def num_actors(self) -> int:
        """Actors wanted; `metrics` tells how many of them work."""
        with self._changed:
            return self._fleet.num_actors

    @property
    def num_lost(self) -> int:
        """Actors lost since the start."""
        with self._changed:
            return self._fleet.metrics.num_lost

    @property
    def actor_ids(self) -> tuple[str, ...]:
        with self._changed:
            return tuple(actor.actor_id for actor in self._fleet.actors)

    def actors(self) -> list[ActorView]:
        """Return what every actor does now, in the order of `actor_ids`."""
        with self._changed:
            return self._fleet.views(time.monotonic())

    def metrics(self) -> dict[str, float]:
        """Return the present numbers: actors by state, queue, versions."""
        with self._changed:
            return self._fleet.gauges()

    def step_metrics(self) -> dict[str, float]:
        """Return what happened since the last call, and the present numbers."""
        with self._changed:
            self._fleet.note_time(time.monotonic())
            seconds, self._seconds = self._seconds, {}
            return {**self._fleet.metrics.take(), **self._fleet.gauges(), **seconds}

    # Chaos

    def kill_actor(self, index: int) -> None:
        """End the actor of a slot as a crash would."""
        self._actors.crash(self._id_of(index))

    def stop_actor(self, index: int) -> None:
        """Stop its process (SIGSTOP), which Ray never notices."""
        self._actors.send_signal(self._id_of(index), signal.SIGSTOP)

    def continue_actor(self, index: int) -> None:
        """Let a stopped process go on (SIGCONT)."""
        self._actors.send_signal(self._id_of(index), signal.SIGCONT)

    def _id_of(self, index: int) -> str:
        with self._changed:
            found = {actor.slot.index: actor.actor_id for actor in self._fleet.actors}
        if index not in found:
            raise ValueError(f"rollout: no actor in slot {index}, there are {sorted(found)}")
        return found[index]

    # The thread

    def _run(self) -> None:
        """Do what the fleet says and tell it what happens, until the pool is shut down."""
        try:
            while self._turn():
                pass
        except BaseException as error:  # carried to whoever waits in another thread
            with self._changed:
                self._error = error
                self._changed.notify_all()
            self._ring()

    def _turn(self) -> bool:
        with self._changed:
            if self._stops:
                return False
            num_results = len(self._results)
            for action in self._fleet.poll(time.monotonic()):
                self._do(action)
            has_news = len(self._results) > num_results
            timeout_s = min(self._fleet.next_wakeup() - time.monotonic(), LONGEST_SLEEP_S)
            self._changed.notify_all()
        if has_news:
            self._ring()
        self._handle_events(max(0.0, timeout_s))
        return True

    def _handle_events(self, timeout_s: float) -> None:
        try:
            event = self._events.get(timeout=timeout_s) if timeout_s else self._events.get_nowait()
            with self._changed:
                while not self._stops:
                    event()
                    event = self._events.get_nowait()
        except queue.Empty:
            return

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.ring()

    def _do(self, action: Action) -> None:
        actor_id = action.actor_id
        actors = self._actors
        match action:
            case Spawn():
                appeared = partial(self._on_appeared, actor_id)
                actors.spawn(actor_id, self._settings, appeared, partial(self._on_opened, actor_id))
            case Reload():
                handle = partial(self._on_opened, actor_id)
                actors.call(actor_id, "use_policy", handle, self._settings.policy)
            case Sample():
                task = self._tasks[action.task.lease_id]
                actors.sample(actor_id, task, partial(self._on_sampled, actor_id, task.lease_id))
            case Withdraw():
                handle = partial(self._on_withdrawn, actor_id, action.lease_id)
                actors.call(actor_id, "withdraw", handle, action.lease_id)
            case Stage():
                self._stage(actor_id, action.publish)
            case AskCanary():
                assert self._canary is not None, "the fleet asks for one that was set"
                handle = partial(self._on_canary, actor_id, self._canary)
                actors.call(actor_id, "canary", handle, *self._canary.question)
            case Probe():
                actors.call(actor_id, "progress", partial(self._on_progress, actor_id))
            case Kill():
                self._receipts.pop(actor_id, None)
                actors.kill(actor_id, is_stuck=action.is_stuck)
            case Lost():
                self._hand_back(action)

    def _stage(self, actor_id: str, publish: Publish) -> None:
        assert self._weights is not None, "the fleet stages what was published"
        manifest, payload = self._weights
        assert publish == manifest.order, f"newest is {manifest.order}, asked for {publish}"
        handle = partial(self._on_staged, actor_id, publish, manifest.digest)
        self._actors.call(actor_id, "stage_weights", handle, manifest, *arguments(payload))

    def _hand_back(self, lost: Lost) -> None:
        task = lost.task
        del self._tasks[task.lease_id]
        if lost.cause.blames_prompt:
            self._losses[task.prompt_id] += 1
        self._results.append(
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
            self._actors.is_at(actor_id, future.result())
            self._fleet.appeared(actor_id, time.monotonic())
        else:
            self._died(actor_id, future)

    def _on_opened(self, actor_id: str, future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            self._fleet.opened(actor_id, time.monotonic())
        elif not self._died(actor_id, future):
            self._fleet.open_failed(actor_id, cause_of(error), time.monotonic())

    def _on_sampled(
        self, actor_id: str, lease_id: str, group: Any, future: Future[GroupSummary | None]
    ) -> None:
        error, now = future.exception(), time.monotonic()
        if error is not None:
            if self._died(actor_id, future):
                return
            cause = cause_of(error)
            if isinstance(cause, WeightsError):
                self._fleet.distrusted(actor_id, _first_line(cause), now)
            else:
                self._fleet.failed(actor_id, lease_id, cause, now)
            return
        summary = future.result()
        if summary is None:  # withdrawn before its turn
            return
        if self._fleet.sampled(actor_id, lease_id, summary.policy_version, now):
            del self._tasks[lease_id]
            self._note_seconds("weights/swap_pause/seconds", summary.swap_s)
            self._results.append(SampledGroup(group=group, summary=summary))
            self._changed.notify_all()
            self._ring()

    def _on_withdrawn(self, actor_id: str, lease_id: str, future: Future[bool]) -> None:
        if not self._died(actor_id, future):
            is_ours = future.result()
            self._fleet.withdrawn(actor_id, lease_id, time.monotonic(), is_ours=is_ours)

    def _on_staged(
        self, actor_id: str, publish: Publish, digest: str, future: Future[WeightsReceipt]
    ) -> None:
        if self._died(actor_id, future):
            return
        error, now = future.exception(), time.monotonic()
        if error is not None:
            self._fleet.stage_refused(actor_id, publish, _first_line(cause_of(error)), now)
            return
        receipt = future.result()
        if receipt.digest != digest or (receipt.incarnation, receipt.version) != publish:
            reason = f"took {receipt}, published was {publish} with digest {digest}"
            self._fleet.stage_refused(actor_id, publish, reason, now)
            return
        if actor_id in self._actors:
            self._receipts[actor_id] = receipt
        self._note_seconds("weights/transport/seconds", receipt.transport_s)
        self._note_seconds("weights/verify/seconds", receipt.verify_s)
        self._fleet.staged(actor_id, publish, now)

    def _on_canary(self, actor_id: str, canary: _Canary, future: Future[Any]) -> None:
        if self._died(actor_id, future):
            return
        error, now = future.exception(), time.monotonic()
        if error is not None:
            self._fleet.distrusted(actor_id, _first_line(cause_of(error)), now)
            return
        order, velocity = future.result()
        difference = None
        try:
            check_canary(actor_id, velocity, canary.velocity, canary.tolerance)
        except WeightsError as wrong:
            difference = str(wrong)
        publish = Publish(*order) if canary is self._canary else None
        self._fleet.canary_answered(actor_id, publish, difference, now)

    def _on_progress(self, actor_id: str, future: Future[int]) -> None:
        if not self._died(actor_id, future):
            self._fleet.progress(actor_id, future.result(), time.monotonic())

    def _died(self, actor_id: str, future: Future[Any]) -> bool:
        """Tell the fleet, and return True, when a call ended since the process is gone."""
        error = future.exception()
        if error is None or not is_death(error):
            return False
        self._fleet.died(actor_id, _first_line(error), time.monotonic())
        return True

    # Waiting

    def _wait(self, is_done: Callable[[], bool], deadline_s: float, doing: str) -> None:
        """Block until `is_done`.

        Raises:
            RolloutLostError: it is not within `deadline_s`.
            BaseException: what ended the pool's thread.
        """
        with self._changed:
            in_time = self._changed.wait_for(
                lambda: self._error is not None or is_done(), deadline_s
            )
            self._check_alive()
            if not in_time:
                states = ", ".join(
                    f"{actor.actor_id} is {actor.state}" for actor in self._fleet.actors
                )
                raise RolloutLostError(
                    f"rollout: {doing} took more than {deadline_s:g} s ({states}); raise "
                    "cluster.start_deadline_s or weights.deadline_s, look at the actors' logs in "
                    "the Ray session folder, or give the cluster room for pending ones"
                )

    def _check_alive(self) -> None:
        if self._error is not None:
            raise self._error

    def _note_seconds(self, name: str, seconds: float) -> None:
        self._seconds[name] = max(self._seconds.get(name, 0.0), seconds)


def fleet_settings(config: RolloutConfig, start_deadline_s: float) -> FleetSettings:
    """Return what of the recipe the fleet decides by."""
    return FleetSettings(
        deadline_s=config.deadline_s,
        stall_s=config.stall_s,
        heartbeat_s=config.heartbeat_s,
        start_deadline_s=start_deadline_s,
        crash_budget=config.crash_budget,
        crash_window_s=config.crash_window_s,
        autoscale=config.autoscale,
    )


def _nothing() -> None:
    """Wakes the thread."""


def _copy(answer: Future[Any], future: Future[Any]) -> None:
    error = future.exception()
    if error is None:
        answer.set_result(future.result())
    elif is_death(error):
        answer.set_exception(RolloutLostError(f"an actor died while asked: {_first_line(error)}"))
    else:
        answer.set_exception(cause_of(error))


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
