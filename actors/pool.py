"""The rollout actors of a run: starts them, hands out groups, replaces the lost ones.

    submit(task) --> queue --> idle actor --> collect() --> SampledGroup
                                 |  died, or overran its deadline
                                 +--> replaced and brought to the current weights; LostGroup

Owned by the driver, one thread. An actor holds one group at a time; which actor samples a group
does not matter to the result, because every seed is in the task.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError

from rlvid.actors.ray_actor import RolloutActor
from rlvid.config import LearnerConfig, ModelConfig, RolloutConfig
from rlvid.models.policy import Policy
from rlvid.records import GroupSummary, GroupTask, WeightsManifest, WeightsReceipt

logger = logging.getLogger(__name__)

MAX_REPLACEMENTS_PER_ACTOR = 3
"""Crash-loop budget: an actor slot that dies more often stops the run."""
ACTOR_LOST = (RayActorError, OutOfMemoryError)
"""What Ray raises for a dead actor; one that its memory monitor killed is no RayActorError."""


class RolloutLostError(RuntimeError):
    """An actor died or did not answer, and another one would not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGroup:
    """A finished group: where it lies and what the driver may know of it."""

    group: Any
    """Object reference of the RolloutGroup, owned by the driver."""
    summary: GroupSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class LostGroup:
    """A group whose actor died or overran; the actor is replaced, the group must be leased anew."""

    group_id: str
    reason: str


@dataclass(slots=True, eq=False)
class _Slot:
    index: int
    handle: Any
    actor_id: str
    opened: Any = None
    num_replacements: int = 0
    task: GroupTask | None = None
    group: Any = None
    summary: Any = None
    since: float = 0.0


class RolloutPool:
    """A fixed number of rollout actors under supervision."""

    def __init__(
        self,
        policy: Policy,
        model_config: ModelConfig,
        rollout_config: RolloutConfig,
        learner_config: LearnerConfig | None,
        *,
        num_threads: int,
        start_deadline_s: float,
    ) -> None:
        self._policy = policy
        self._model_config = model_config
        self._config = rollout_config
        self._learner_config = learner_config
        self._num_threads = num_threads
        self._start_deadline_s = start_deadline_s
        self._slots: list[_Slot] = []
        self._queue: deque[GroupTask] = deque()
        self._weights: tuple[WeightsManifest, Sequence[Any]] | None = None
        self.num_lost = 0

    def start(self) -> None:
        """Create the actors; they load their models while the caller goes on."""
        for index in range(self._config.num_actors):
            slot = _Slot(index, None, "")
            self._spawn(slot)
            self._slots.append(slot)

    def wait_ready(self) -> None:
        """Block until every actor has loaded its model.

        Raises:
            RolloutLostError: names the actor that died or did not answer.
            Exception: what loading raised, e.g. ValueError for a missing folder.
        """
        for slot in self._slots:
            self._get(slot, slot.opened, self._start_deadline_s, "loading its model")

    def publish(
        self, manifest: WeightsManifest, buckets: Sequence[Any], deadline_s: float
    ) -> list[WeightsReceipt]:
        """Hand the weights to every actor and return their receipts.

        Raises:
            ValueError: a receipt names another version or digest than was published.
        """
        self._weights = (manifest, buckets)
        calls = [
            (slot, slot.handle.fetch_weights.remote(manifest, *buckets)) for slot in self._slots
        ]
        receipts = []
        for slot, call in calls:
            try:
                receipt = self._get(slot, call, deadline_s, f"taking weights {manifest.version}")
            except RolloutLostError as error:
                receipt = self._replace(slot, str(error))
            if receipt is None or receipt.digest != manifest.digest:
                raise ValueError(
                    f"{slot.actor_id}: took weights {receipt}, published version "
                    f"{manifest.version} with digest {manifest.digest}"
                )
            receipts.append(receipt)
        return receipts

    def submit(self, task: GroupTask) -> None:
        """Queue a group; the next idle actor samples it."""
        self._queue.append(task)
        self._feed()

    def collect(self, timeout_s: float) -> list[SampledGroup | LostGroup]:
        """Return what finished or was lost, waiting at most `timeout_s` for the first.

        Raises:
            RolloutLostError: an actor slot died more often than its budget allows.
            Exception: what sampling raised, e.g. ValueError for a clip size that does not divide.
        """
        busy = {slot.summary: slot for slot in self._slots if slot.task is not None}
        if not busy:
            return []
        ray.wait(list(busy), timeout=timeout_s, fetch_local=False)
        # The first wait ends at one; a group that is done is never late, so ask for all of them.
        done, _ = ray.wait(list(busy), num_returns=len(busy), timeout=0, fetch_local=False)
        now = time.monotonic()
        results: list[SampledGroup | LostGroup] = [self._take(busy[summary]) for summary in done]
        results += [
            self._lose(slot, f"overran rollout.deadline_s of {self._config.deadline_s:g} s")
            for slot in busy.values()
            if slot.task is not None and now - slot.since > self._config.deadline_s
        ]
        self._feed()
        return results

    @property
    def num_outstanding(self) -> int:
        """Groups submitted and not yet collected."""
        return len(self._queue) + sum(slot.task is not None for slot in self._slots)

    def use_policy(self, policy: Policy, deadline_s: float) -> None:
        """Make every actor sample with a policy from files (evaluation)."""
        self._policy = policy  # first, since a replacement loads it
        self._weights = None
        calls = [(slot, slot.handle.use_policy.remote(policy)) for slot in self._slots]
        for slot, call in calls:
            try:
                self._get(slot, call, deadline_s, "loading a policy")
            except RolloutLostError as error:
                self._replace(slot, str(error))

    def canaries(self, latents: Any, sigma: Any, text: str, deadline_s: float) -> list[Any]:
        """Return each actor's velocity for a fixed input, in the order of the actors."""
        calls = [(slot, slot.handle.canary.remote(latents, sigma, text)) for slot in self._slots]
        return [self._get(slot, call, deadline_s, "answering the canary") for slot, call in calls]

    @property
    def actor_ids(self) -> tuple[str, ...]:
        return tuple(slot.actor_id for slot in self._slots)

    def kill_actor(self, index: int) -> None:
        """End one actor as a crash would; the chaos tests use it."""
        ray.kill(self._slots[index].handle)

    def shutdown(self) -> None:
        for slot in self._slots:
            ray.kill(slot.handle)
        self._slots = []

    def _feed(self) -> None:
        for slot in self._slots:
            if slot.task is None and self._queue:
                slot.task = self._queue.popleft()
                slot.group, slot.summary = slot.handle.sample.remote(slot.task)
                slot.since = time.monotonic()

    def _take(self, slot: _Slot) -> SampledGroup | LostGroup:
        try:
            summary: GroupSummary = ray.get(slot.summary, timeout=self._config.deadline_s)
        except RayTaskError as error:
            raise _cause(error) from error
        except ACTOR_LOST:
            return self._lose(slot, "its actor died")
        sampled = SampledGroup(group=slot.group, summary=summary)
        slot.task = slot.group = slot.summary = None
        return sampled

    def _lose(self, slot: _Slot, reason: str) -> LostGroup:
        assert slot.task is not None, "only a busy slot can lose a group"
        lost = LostGroup(group_id=slot.task.group_id, reason=f"{slot.actor_id}: {reason}")
        slot.task = slot.group = slot.summary = None
        self._replace(slot, lost.reason)
        return lost

    def _spawn(self, slot: _Slot) -> None:
        slot.actor_id = f"actor-{slot.index}.{slot.num_replacements}"
        slot.handle = RolloutActor.options(  # type: ignore[attr-defined]
            num_cpus=self._config.num_cpus,
            num_gpus=self._config.num_gpus,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self._num_threads)}},
        ).remote(
            self._policy,
            self._model_config,
            self._learner_config,
            slot.actor_id,
            self._num_threads,
        )
        slot.opened = slot.handle.open.remote()

    def _replace(self, slot: _Slot, reason: str) -> WeightsReceipt | None:
        """Start a new actor in the slot and bring it to the current weights."""
        self.num_lost += 1
        slot.num_replacements += 1
        if slot.num_replacements > MAX_REPLACEMENTS_PER_ACTOR:
            raise RolloutLostError(
                f"{slot.actor_id}: lost {slot.num_replacements} times, the budget is "
                f"{MAX_REPLACEMENTS_PER_ACTOR}; the last time: {reason}. Look at the actor's log "
                "in the Ray session folder, memory is the usual reason; then resume the run"
            )
        lost = slot.actor_id
        ray.kill(slot.handle)
        self._spawn(slot)
        logger.warning("replaced lost actor old=%s new=%s reason=%r", lost, slot.actor_id, reason)
        self._get(slot, slot.opened, self._start_deadline_s, "loading its model")
        if self._weights is None:
            return None
        manifest, buckets = self._weights
        call = slot.handle.fetch_weights.remote(manifest, *buckets)
        receipt: WeightsReceipt = self._get(slot, call, self._start_deadline_s, "taking weights")
        return receipt

    @staticmethod
    def _get(slot: _Slot, call: Any, deadline_s: float, doing: str) -> Any:
        """Return what the call returned.

        Raises:
            RolloutLostError: the actor died or did not answer within `deadline_s`.
            Exception: what the actor raised, without Ray's wrapping.
        """
        try:
            return ray.get(call, timeout=deadline_s)
        except GetTimeoutError as error:
            raise RolloutLostError(
                f"{slot.actor_id}: {doing} took more than {deadline_s:g} s; raise "
                "cluster.start_deadline_s or learner.deadline_s, or look at the actor's log"
            ) from error
        except RayTaskError as error:
            raise _cause(error) from error
        except ACTOR_LOST as error:
            raise RolloutLostError(
                f"{slot.actor_id}: died while {doing}; look at the actor's log in the Ray session "
                "folder, memory is the usual reason; then resume the run"
            ) from error


def _cause(error: RayTaskError) -> Exception:
    """Return what the actor raised, which Ray wraps with a traceback for a message."""
    return error.cause if isinstance(error.cause, Exception) else error
