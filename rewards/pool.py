"""The reward pool: replicas of the reward worker as Ray actors, owned by the driver.

    submit(group_ref) --> replica with the fewest groups --> collect() --> GroupScores
                              |  died, or its first group outlived the deadline
                              +--> killed, replaced; its groups go to the others

A group travels as a reference, so the driver never holds its tensors. Scores are returned by
actor methods, so the driver owns them and they outlive the replica that made them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from torch import Tensor

from rlvid.config.cluster import ClusterConfig
from rlvid.config.model import ModelConfig
from rlvid.config.rewards import RewardsConfig
from rlvid.rewards.base import RewardError, RewardTimeoutError
from rlvid.rewards.ray_actor import RewardActor
from rlvid.rewards.scoring import GroupScores

__all__ = ["RewardPool", "RewardTimeoutError"]

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Replicas one group may take down or outlive before it is blamed."""
MAX_FAILURES_IN_A_ROW = 4
"""Replacements without a scored group between them, per replica, before the pool gives up."""


@dataclass(slots=True, eq=False)
class _Task:
    """One group on its way; `ticket` stays, `attempt` is the call that now works on it."""

    ticket: ray.ObjectRef
    group_ref: ray.ObjectRef
    attempt: ray.ObjectRef
    num_attempts: int = 1


@dataclass(slots=True, eq=False)
class _Replica:
    """One actor, the groups it was given in order, and since when it has worked on the first."""

    number: int
    actor: Any
    opened: ray.ObjectRef
    started: float
    is_open: bool = False
    tasks: deque[_Task] = field(default_factory=deque)
    first_since: float = 0.0


class RewardPool:
    """Scores groups on `num_replicas` actors; one thread of the driver calls it."""

    def __init__(self, rewards: RewardsConfig, model: ModelConfig, cluster: ClusterConfig) -> None:
        self._rewards = rewards
        self._model = model
        self._cluster = cluster
        self._replicas: list[_Replica] = []
        self._num_started = 0
        self._failures_in_a_row = 0
        self.num_replaced = 0
        """Replicas that died or were killed for lateness since the pool started."""

    def start(self) -> None:
        """Start the replicas; `health_check` says whether they came up."""
        self._replicas = [self._start_replica() for _ in range(self._rewards.num_replicas)]

    def health_check(self, deadline_s: float) -> None:
        """Return when every replica has opened its scorers and decoder.

        Raises:
            RewardTimeoutError: some did not within `deadline_s`.
            Exception: what opening raised, e.g. ValueError for a bad scorer entry.
        """
        opened = [replica.opened for replica in self._replicas]
        _, waiting = ray.wait(opened, num_returns=len(opened), timeout=deadline_s)
        for replica in self._replicas:
            if replica.opened in waiting:
                continue
            try:
                _get(replica.opened)
            except (RayActorError, OutOfMemoryError) as error:
                reason = str(error).splitlines()[0].rstrip(".")
                raise RewardError(
                    f"rewards: a replica died while it opened its scorers ({reason}). See the "
                    "actor's log in the Ray session folder; memory is the usual reason."
                ) from error
            self._mark_open(replica)
        if waiting:
            raise RewardTimeoutError(
                f"rewards: {len(waiting)} of {len(opened)} replicas did not open within "
                f"{deadline_s:g} s; each asks for num_cpus {self._rewards.num_cpus:g} and num_gpus "
                f"{self._rewards.num_gpus:g}. Lower rewards.num_replicas, or raise "
                "cluster.start_deadline_s when the model loads slowly."
            )

    def submit(self, group_ref: ray.ObjectRef) -> ray.ObjectRef:
        """Give a sampled group to the replica with the fewest; returns the ticket of `collect`."""
        replica = min(self._replicas, key=lambda r: (len(r.tasks), r.number))
        attempt = replica.actor.score_group.remote(group_ref)
        self._append(replica, _Task(ticket=attempt, group_ref=group_ref, attempt=attempt))
        return attempt

    def collect(self, timeout_s: float) -> list[tuple[ray.ObjectRef, GroupScores]]:
        """Return (ticket, scores) of groups that are done, waiting at most `timeout_s` for one.

        Dead and late replicas are replaced here, so call it again until every ticket came.

        Raises:
            RewardError: a scorer broke its contract, a group took down or outlived
                `MAX_ATTEMPTS` replicas, or replicas die faster than they score.
            Exception: the group itself could not be read, e.g. its object was lost.
        """
        give_up = time.monotonic() + timeout_s
        while True:
            done = self._take_finished()
            self._replace_late()
            left = give_up - time.monotonic()
            if done or left <= 0 or not self.num_outstanding:
                return done
            watched = [task.attempt for r in self._replicas for task in r.tasks]
            watched += [replica.opened for replica in self._replicas if not replica.is_open]
            # Half a second at most: ray.wait knows nothing of our deadlines.
            ray.wait(watched, num_returns=1, timeout=min(left, 0.5))

    def score(self, group_refs: Sequence[ray.ObjectRef]) -> list[GroupScores]:
        """Score all the groups; the answers are in their order. Call it with nothing in flight."""
        tickets = [self.submit(ref) for ref in group_refs]
        answers: dict[ray.ObjectRef, GroupScores] = {}
        while len(answers) < len(tickets):
            answers.update(self.collect(timeout_s=self._rewards.deadline_s))
        return [answers[ticket] for ticket in tickets]

    def clips(self, group_ref: ray.ObjectRef) -> Tensor:
        """Return the decoded clips of a group, [G, T, 3, H, W] uint8, for a log or report."""
        call = self._replicas[0].actor.clips.remote(group_ref)
        return cast(Tensor, ray.get(call, timeout=self._rewards.deadline_s))

    @property
    def num_outstanding(self) -> int:
        """Groups submitted and not yet collected."""
        return sum(len(replica.tasks) for replica in self._replicas)

    def shutdown(self) -> None:
        """Kill the replicas; groups in flight are forgotten."""
        for replica in self._replicas:
            ray.kill(replica.actor)
        self._replicas = []

    def _start_replica(self) -> _Replica:
        threads = self._cluster.threads_per_role
        actor = RewardActor.options(  # type: ignore[attr-defined]
            num_cpus=self._rewards.num_cpus,
            num_gpus=self._rewards.num_gpus,
            max_restarts=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        ).remote(self._rewards, self._model, threads)
        self._num_started += 1
        return _Replica(
            number=self._num_started,
            actor=actor,
            opened=actor.open.remote(),
            started=time.monotonic(),
        )

    def _append(self, replica: _Replica, task: _Task) -> None:
        if not replica.tasks:
            replica.first_since = time.monotonic()
        replica.tasks.append(task)

    def _mark_open(self, replica: _Replica) -> None:
        if not replica.is_open:
            replica.is_open = True
            replica.first_since = time.monotonic()

    def _take_finished(self) -> list[tuple[ray.ObjectRef, GroupScores]]:
        """Collect what is done; a replica whose process is gone is replaced on the way."""
        done: list[tuple[ray.ObjectRef, GroupScores]] = []
        for replica in list(self._replicas):
            try:
                if not replica.is_open and _is_ready(replica.opened):
                    _get(replica.opened)
                    self._mark_open(replica)
                # Calls on one actor end in the order they were made, so only the first can be done.
                while replica.tasks and _is_ready(replica.tasks[0].attempt):
                    scores = _get(replica.tasks[0].attempt)
                    done.append((replica.tasks.popleft().ticket, scores))
                    replica.first_since = time.monotonic()
                    self._failures_in_a_row = 0
            except RayActorError as error:
                if error.actor_id not in (None, replica.actor._actor_id.hex()):
                    raise  # the actor that owned the group died, not the one that scores it
                self._replace(replica, "it died")
            except OutOfMemoryError:  # Ray's memory monitor killed it; this is no RayActorError
                self._replace(replica, "it was killed for lack of memory")
        return done

    def _replace_late(self) -> None:
        now = time.monotonic()
        for replica in list(self._replicas):
            if not replica.is_open:
                if now - replica.started > self._cluster.start_deadline_s:
                    self._replace(replica, f"did not open in {self._cluster.start_deadline_s:g} s")
            elif replica.tasks and now - replica.first_since > self._rewards.deadline_s:
                self._replace(replica, f"scored one group for {self._rewards.deadline_s:g} s")

    def _replace(self, replica: _Replica, reason: str) -> None:
        """Kill the replica, start another and hand its groups to whoever has fewest."""
        self.num_replaced += 1
        self._failures_in_a_row += 1
        logger.warning(
            "reward replica replaced replica=%d reason=%r groups=%d",
            replica.number,
            reason,
            len(replica.tasks),
        )
        if self._failures_in_a_row > MAX_FAILURES_IN_A_ROW * self._rewards.num_replicas:
            raise RewardError(
                f"rewards: {self._failures_in_a_row} replicas failed with no group scored between "
                f"them; the last one: {reason}. See the actor's log in the Ray session folder, "
                "and rewards.deadline_s when it was late."
            )
        ray.kill(replica.actor)
        self._replicas[self._replicas.index(replica)] = self._start_replica()
        first = replica.tasks[0] if replica.is_open and replica.tasks else None
        for task in replica.tasks:
            if task is first:  # the others only waited behind it
                self._count_attempt(task, reason)
            target = min(self._replicas, key=lambda r: (len(r.tasks), r.number))
            task.attempt = target.actor.score_group.remote(task.group_ref)
            self._append(target, task)

    def _count_attempt(self, task: _Task, reason: str) -> None:
        task.num_attempts += 1
        if task.num_attempts > MAX_ATTEMPTS:
            kind = RewardTimeoutError if reason.startswith("scored") else RewardError
            raise kind(
                f"rewards: one group failed {MAX_ATTEMPTS} replicas in turn; the last one: "
                f"{reason}. A scorer hangs or crashes its process on this group; raise "
                "rewards.deadline_s if it is only slow."
            )


def _is_ready(ref: ray.ObjectRef) -> bool:
    ready, _ = ray.wait([ref], timeout=0, fetch_local=False)
    return bool(ready)


def _get(ref: ray.ObjectRef) -> Any:
    """Return the finished call's value; raise what the actor raised, without Ray's wrapping."""
    try:
        return ray.get(ref, timeout=60.0)
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise
