"""The process that writes scored groups, and the driver's handle on it.

    begin_keep(reference) -> waits -> actor writes -> poll() -> StoredGroup | KeepFailure

The driver holds references only: the actor, on the driver's node and its disk, gets the tensors
from the object store. A lost actor is replaced and its writes begun again.
"""

from __future__ import annotations

import logging
import os
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlvid.bell import Bell
from rlvid.config.storage import StorageConfig
from rlvid.durable import DiskFullError
from rlvid.group_digest import digest_of_group
from rlvid.launch.group_store import GroupStore, StoredGroup, open_group_store
from rlvid.launch.keep_queue import KeepItem, KeepQueue
from rlvid.process_env import runtime_env_of
from rlvid.ray_errors import ACTOR_LOST, cause_of, first_line
from rlvid.records import GroupSummary, RolloutGroup
from rlvid.rewards.scoring import GroupScores

logger = logging.getLogger(__name__)

MAX_REPLACEMENTS = 3
"""Crash-loop budget of the writer; after it the run goes on and keeps no groups."""
FLUSH_POLL_S = 0.1
START_DEADLINE_S = 240.0


class KeeperLostError(RuntimeError):
    """The writer died or did not answer, and another one would not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepFailure:
    """A group that is not on the disk; a restart would sample it again."""

    group_id: str
    step: int
    error: Exception
    """DiskFullError: raise it, the run should stop; its last checkpoint is intact."""

    @property
    def is_disk_full(self) -> bool:
        return isinstance(self.error, DiskFullError)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedGroup:
    """A group read back from the disk."""

    group: Any
    """Object reference of the RolloutGroup, owned by the caller."""
    summary: GroupSummary
    scores: GroupScores


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class KeeperActor:
    """A GroupStore in a process of its own; calls come one at a time, in order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> int:
        """Clear the folder; not in __init__, whose errors Ray wraps beyond reading."""
        self._store = open_group_store(self._folder)
        return os.getpid()

    def keep(self, group: RolloutGroup, scores: GroupScores, step: int) -> StoredGroup:
        return self._store.write(group, scores, step=step)

    @ray.method(num_returns=2)
    def load(self, group_id: str) -> tuple[RolloutGroup, tuple[GroupSummary, GroupScores]]:
        """The group stays in the object store; the driver fetches the rest."""
        group, scores = self._store.read(group_id)
        return group, (group.summary(digest_of_group(group)), scores)

    def index(self, first_step: int) -> dict[int, list[StoredGroup]]:
        return self._store.index(first_step)

    def drop_before(self, step: int) -> int:
        return self._store.drop_before(step)

    def shrink(self, max_bytes: float, before_step: int) -> int:
        return self._store.shrink(max_bytes, before_step)

    def link_into(self, checkpoint: Path, first_step: int) -> int:
        return self._store.link_into(checkpoint, first_step)

    def restore_from(self, checkpoint: Path) -> int:
        return self._store.restore_from(checkpoint)


class Keeper:
    """The driver's handle; one thread calls it, and nothing here blocks without a deadline."""

    def __init__(self, folder: Path, config: StorageConfig, *, bell: Bell | None = None) -> None:
        self.folder = folder.resolve()
        self._config = config
        self._queue = KeepQueue(config)
        self._bell = bell
        # Answers come in Ray's threads and are handled in the caller's.
        self._answers: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._news: list[StoredGroup | KeepFailure] = []
        self._num_replaced = 0
        self._disk_bytes = 0
        self._lost: Exception | None = None
        self._actor: Any = None
        self._opening: Any = None
        self._started = 0.0
        self.process_id: int | None = None
        """Of the writer once it is up; for those who test how it dies."""

    def start(self) -> None:
        """Start the writer on this node; it takes calls at once and works on them when it is up."""
        node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor = KeeperActor.options(  # type: ignore[attr-defined]
            scheduling_strategy=node, runtime_env=runtime_env_of({"OMP_NUM_THREADS": "1"})
        ).remote(self.folder)
        self.process_id = None
        self._started = time.monotonic()
        self._opening = self._actor.open.remote()
        self._opening.future().add_done_callback(partial(self._put, self._take_open, self._actor))

    def begin_keep(self, group_id: str, group: Any, scores: GroupScores, *, step: int) -> None:
        """Have a group written; `poll` says when it is on the disk.

        Args:
            group: object reference of the RolloutGroup, owned by the caller.
        """
        self._queue.add(KeepItem(group_id=group_id, step=step, group=group, scores=scores))
        self._feed()

    def poll(self) -> list[StoredGroup | KeepFailure]:
        """Return what was written or failed since the last call; never blocks."""
        self._advance()
        news, self._news = self._news, []
        return news

    def flush(self, deadline_s: float) -> bool:
        """Wait until nothing is on its way to the disk any more; `poll` tells what became of it.

        Returns:
            False when `deadline_s` was over first: the rest would be sampled again.
        """
        end = time.monotonic() + deadline_s
        self._advance()
        while self._queue.backlog and time.monotonic() < end:
            calls = [item.call for item in self._queue.in_flight.values()] or [self._opening]
            ray.wait(calls, timeout=min(FLUSH_POLL_S, deadline_s), fetch_local=False)
            self._advance()
        return self._queue.backlog == 0

    def load(self, group_id: str, deadline_s: float) -> LoadedGroup:
        """Read a group back into the object store.

        Raises:
            StoredGroupError: there is none, or it is damaged.
            KeeperLostError: the writer did not answer in time.
        """
        groups: list[Any] = []

        def begin(actor: Any) -> Any:
            group, rest = actor.load.remote(group_id)
            groups.append(group)
            return rest

        summary, scores = self._ask(begin, deadline_s, f"reading group {group_id}")
        return LoadedGroup(group=groups[-1], summary=summary, scores=scores)

    def index(self, deadline_s: float, *, first_step: int = 0) -> dict[int, list[StoredGroup]]:
        """Return what is on the disk and whole, by step; see `GroupStore.index`."""
        found: dict[int, list[StoredGroup]] = self._ask(
            lambda actor: actor.index.remote(first_step), deadline_s, "reading what is there"
        )
        return found

    def drop_before(self, step: int) -> None:
        """Forget the groups of steps before `step`, waiting ones too; does not block."""
        self._queue.drop_before(step)
        if self._actor is not None:
            call = self._actor.drop_before.remote(step)
            call.future().add_done_callback(partial(self._put, _warn, step))

    def learned_from(self, before_step: int) -> None:
        """Say that steps before `before_step` are trained: their groups go where all take more than
        `storage.max_mb`. Does not block."""
        if self._actor is not None:
            call = self._actor.shrink.remote(1e6 * self._config.max_mb, before_step)
            call.future().add_done_callback(partial(self._put, self._take_size, before_step))

    def link_into(self, checkpoint: Path, first_step: int, deadline_s: float) -> int:
        """Put the groups on disk of `first_step` and later into a checkpoint; return how many.

        `flush` first, where those still waiting are to be in it too.
        """
        checkpoint = checkpoint.resolve()
        if self._lost is not None:  # what it wrote while it lived is as good as ever
            return GroupStore(self.folder).link_into(checkpoint, first_step)
        return int(
            self._ask(
                lambda actor: actor.link_into.remote(checkpoint, first_step),
                deadline_s,
                f"linking groups into {checkpoint}",
            )
        )

    def restore_from(self, checkpoint: Path, deadline_s: float) -> int:
        """Take from a checkpoint the groups that are not on the disk; return how many."""
        checkpoint = checkpoint.resolve()
        return int(
            self._ask(
                lambda actor: actor.restore_from.remote(checkpoint),
                deadline_s,
                f"taking groups from {checkpoint}",
            )
        )

    def step_metrics(self) -> dict[str, float]:
        """Return the metrics since the last call, under their names in the table."""
        counts = self._queue.take_counts()
        return {
            "storage/groups/written": float(counts.written),
            "storage/groups/failed": float(counts.failed),
            "storage/groups/late": float(counts.late),
            "storage/groups/backlog": float(self._queue.backlog),
            "storage/write/mb": counts.num_bytes / 1e6,
            "storage/write/seconds": counts.seconds,
            "storage/disk/mb": self._disk_bytes / 1e6,
        }

    def shutdown(self) -> None:
        """End the writer; what it had not finished leaves no file."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = self.process_id = None

    def _advance(self) -> None:
        """Handle what was answered, look at the clock, and begin what may begin."""
        while True:
            try:
                self._answers.get_nowait()()
            except queue.Empty:
                break
        now = time.monotonic()
        for item in self._queue.newly_late(now):
            logger.warning(
                "slow disk: writing group=%s takes more than storage.disk_deadline_s of %g s "
                "folder=%s; after a restart it would be sampled again",
                item.group_id, self._config.disk_deadline_s, self.folder,
            )  # fmt: skip
        is_starting = self._actor is not None and self.process_id is None
        if self._queue.is_stopped(now):
            self._replace("it does not answer")
        elif is_starting and now - self._started > START_DEADLINE_S:
            self._replace(f"it did not start within {START_DEADLINE_S:g} s")
        self._feed()

    def _feed(self) -> None:
        if self._lost is not None:
            for item in self._queue.fail_all():
                self._fail(item, self._lost)
        if self.process_id is None:  # starting takes longer than a write may
            return
        for call, item in self._queue.begin(time.monotonic()):
            item.call = self._actor.keep.remote(item.group, item.scores, item.step)
            item.call.future().add_done_callback(partial(self._put, self._take, call))

    def _put(self, take: Callable[[Any, Future[Any]], None], key: Any, future: Future[Any]) -> None:
        """Have an answer handled in the caller's thread; runs in one of Ray's."""
        self._answers.put(partial(take, key, future))
        if self._bell is not None:
            self._bell.ring()

    def _take_size(self, step: int, future: Future[Any]) -> None:
        _warn(step, future)
        if future.exception() is None:
            self._disk_bytes = future.result()

    def _take_open(self, actor: Any, future: Future[Any]) -> None:
        if actor is not self._actor:
            return
        error = future.exception()
        if error is None:
            self.process_id = future.result()
        elif isinstance(error, ACTOR_LOST):
            self._replace(f"it died: {first_line(error)}")
        else:  # another writer would find the same folder
            self._lost = cause_of(error)

    def _take(self, call: int, future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            stored: StoredGroup = future.result()
            if self._queue.done(call, stored.num_bytes, time.monotonic()) is not None:
                self._news.append(stored)
            return
        if isinstance(error, ACTOR_LOST):
            # The calls behind it fail too, and are unknown by then.
            if call in self._queue.in_flight:
                self._replace(f"it died: {first_line(error)}")
            return
        item = self._queue.failed(call)
        if item is not None:
            self._fail(item, cause_of(error))

    def _replace(self, reason: str) -> None:
        """Start another writer, which begins again what this one had."""
        if self._lost is not None:
            return
        ray.kill(self._actor)
        self._actor = self.process_id = None
        self._num_replaced += 1
        self._queue.begin_again()
        if self._num_replaced > MAX_REPLACEMENTS:
            self._lost = KeeperLostError(
                f"groups {str(self.folder)!r}: their writer was lost {self._num_replaced} times, "
                f"the budget is {MAX_REPLACEMENTS}; the last time: {reason}. No group is kept any "
                "more; look at its log and at the disk, then resume the run"
            )
            return
        logger.warning("replaced the writer of groups reason=%r", reason)
        self.start()

    def _fail(self, item: KeepItem, error: Exception) -> None:
        logger.warning("group=%s is not on the disk: %s", item.group_id, error)
        self._news.append(KeepFailure(group_id=item.group_id, step=item.step, error=error))

    def _ask(self, begin: Callable[[Any], Any], deadline_s: float, doing: str) -> Any:
        """Return what a call of the writer returned; a lost writer's successor is asked again."""
        end = time.monotonic() + deadline_s
        while self._lost is None:
            assert self._actor is not None, "start comes first"
            actor = self._actor
            try:
                return ray.get(begin(actor), timeout=max(end - time.monotonic(), 0.0))
            except GetTimeoutError as error:
                raise KeeperLostError(
                    f"groups {str(self.folder)!r}: {doing} took more than {deadline_s:g} s; "
                    "look at the disk, then resume the run"
                ) from error
            except RayTaskError as error:
                raise cause_of(error) from error
            except ACTOR_LOST:
                if self._actor is actor:
                    self._replace(f"it died while {doing}")
        raise self._lost


def _warn(step: int, done: Future[Any]) -> None:
    error = done.exception()
    if error is not None:
        logger.warning("groups before step=%d were not removed: %s", step, first_line(error))
