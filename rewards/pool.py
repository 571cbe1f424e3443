"""The reward pool: scorers and decoder in Ray actors, owned by a thread of the driver.

    submit(group_ref) --> decode, once --> clips in the object store --> every scorer's replicas
    collect() <-- GroupScores <-- scores, or the reason why one is missing

Latents and clips travel as references, so the driver never holds them. They are returned by actor
methods, so the driver owns them and they outlive the process that made them. What goes where is
decided by `dispatch.dispatcher`; this file only starts, calls, watches and kills processes.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from torch import Tensor

from rlvid.config.cluster import ClusterConfig
from rlvid.config.model import ModelConfig
from rlvid.config.rewards import RewardsConfig
from rlvid.records import Prompt
from rlvid.rewards.base import Endpoint, RewardTimeoutError
from rlvid.rewards.decoding import ClipInfo, Frames, as_tensor, describe_clips
from rlvid.rewards.dispatch.cache import ScoreCache
from rlvid.rewards.dispatch.dispatcher import DECODER, Dispatcher
from rlvid.rewards.dispatch.metrics import PoolMetrics
from rlvid.rewards.dispatch.placement import plan_pool
from rlvid.rewards.dispatch.pool_group import PoolGroup
from rlvid.rewards.dispatch.processes import Action, Call, Decode, Finished, Kill, ScoreBatch, Spawn
from rlvid.rewards.ray_actor import ActorSet, Handler, cause_of, is_death, is_lost_object
from rlvid.rewards.scoring import GroupScores, ScorerInfo, check_clip

if TYPE_CHECKING:
    from rlvid.rewards.vllm.pool import ServerPool

__all__ = ["RewardPool", "RewardTimeoutError"]

logger = logging.getLogger(__name__)

Ticket = int
"""What `submit` gives and `collect` returns it with."""
SERVER_POLL_S = 1.0


class RewardPool:
    """Scores groups of clips. Any thread may submit; one collects."""

    def __init__(
        self, rewards: RewardsConfig, model: ModelConfig | None, cluster: ClusterConfig
    ) -> None:
        """`model` None: clips and files will be submitted, never latents."""
        self._rewards = rewards
        self._model = model
        self._cluster = cluster
        self._positions = {s.label: number for number, s in enumerate(rewards.scorers)}
        self._servers_of = {s.label: s.server for s in rewards.scorers if s.server}
        self._metrics = PoolMetrics()
        lanes, hosts = plan_pool(rewards)
        self._dispatcher = Dispatcher(
            lanes,
            hosts,
            max_attempts=rewards.max_attempts,
            deadline_s=rewards.deadline_s,
            start_deadline_s=cluster.start_deadline_s,
            cache=ScoreCache(rewards.cache_entries),
            metrics=self._metrics,
        )
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._actors = ActorSet(rewards, model, cluster, post=self._events.put)
        self._unconnected: dict[int, dict[str, ScorerInfo]] = {}
        """Processes that are open and wait to be told of their servers."""
        self._endpoints: dict[str, Sequence[Endpoint]] | None = None
        """By server; None until all servers answered."""
        self._servers: ServerPool | None = None
        self._thread = threading.Thread(target=self._run, name="reward-pool", daemon=True)
        self._stops = threading.Event()
        # Below: shared with the callers' threads, under the lock of `_changed`.
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._is_ready = False
        self._answers: deque[tuple[Ticket, GroupScores]] = deque()
        self._clips: dict[Ticket, Future[Any]] = {}
        self._num_tickets = 0
        self._num_outstanding = 0

    # What callers use

    def start(self) -> None:
        """Start servers and processes; `health_check` says whether they came up."""
        if self._rewards.servers:
            from rlvid.rewards.vllm.pool import ServerPool

            self._servers = ServerPool(self._rewards.servers, self._cluster)
            self._servers.start()
        self._thread.start()

    def health_check(self, deadline_s: float) -> None:
        """Return when servers, scorers and decoder are up and fit the model's clips.

        Raises:
            RewardTimeoutError: some are not within `deadline_s`, servers not counted, which have
                a `start_deadline_s` of their own.
            RewardError: a scorer needs other clips than the model makes, or a process died.
            Exception: what opening raised, e.g. ValueError for a bad scorer entry.
        """
        if self._servers is not None:
            self._servers.wait_ready()
            self._events.put(partial(self._servers_are, self._all_endpoints()))
            watcher = threading.Thread(target=self._watch_servers, name="servers", daemon=True)
            watcher.start()
        with self._changed:
            self._changed.wait_for(lambda: self._is_ready or self._error, deadline_s)
            if self._error:
                raise self._error
            if not self._is_ready:
                raise RewardTimeoutError(self._describe_waiting(deadline_s))
        self._check_specs()

    def submit(self, group_ref: ray.ObjectRef, scorers: Sequence[str] | None = None) -> Ticket:
        """Have a sampled group scored; returns the ticket that `collect` gives back.

        Args:
            scorers: labels of those to ask, all when None.
        """
        return self._submit(payload=group_ref, scorers=scorers)

    def submit_clips(
        self,
        frames: Frames,
        prompt: Prompt,
        *,
        fps: float,
        group_id: str,
        scorers: Sequence[str] | None = None,
    ) -> Ticket:
        """Have clips scored as they are: uint8 [G, T, H, W, 3], a group of one prompt.

        Raises:
            ValueError: another shape or type.
            RewardError: a scorer needs other clips; nothing was submitted.
        """
        info = describe_clips(frames, prompt, fps=fps, group_id=group_id)
        self._check_info(info)
        reference = ray.put(np.ascontiguousarray(frames))
        return self._submit(info=info, frames=reference, scorers=scorers)

    def submit_files(
        self,
        files: Sequence[bytes],
        prompt: Prompt,
        *,
        group_id: str,
        scorers: Sequence[str] | None = None,
    ) -> Ticket:
        """Have MP4 files scored, a group of one prompt; one that is no video is a missing score."""
        promised = ClipInfo(
            group_id=group_id,
            prompt=prompt,
            indices=tuple(range(len(files))),
            digests=("",) * len(files),
            num_frames=0,
            height=0,
            width=0,
            fps=0.0,
            decode_s=0.0,
        )
        return self._submit(
            payload=(ray.put(tuple(files)), prompt, group_id), promised=promised, scorers=scorers
        )

    def collect(self, timeout_s: float) -> list[tuple[Ticket, GroupScores]]:
        """Return (ticket, scores) of groups that are done, waiting at most `timeout_s` for one.

        Raises:
            RewardError: a scorer broke its contract, or replicas die faster than they score.
            Exception: what else ended the pool, e.g. a group that cannot be decoded.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._answers or self._error or not self._num_outstanding, timeout_s
            )
            if self._error:
                raise self._error
            done = list(self._answers)
            self._answers.clear()
            self._num_outstanding -= len(done)
            return done

    def score(self, group_refs: Sequence[ray.ObjectRef]) -> list[GroupScores]:
        """Score all the groups; the answers are in their order. Call it with nothing in flight."""
        tickets = [self.submit(ref) for ref in group_refs]
        answers: dict[Ticket, GroupScores] = {}
        while len(answers) < len(tickets):
            answers.update(self.collect(timeout_s=self._rewards.deadline_s))
        return [answers[ticket] for ticket in tickets]

    def clips(self, group_ref: ray.ObjectRef) -> Tensor:
        """Return the decoded clips of a group, [G, T, 3, H, W] uint8, for a log or report."""
        answer: Future[Any] = Future()
        with self._changed:
            if self._error:
                raise self._error
            self._num_tickets += 1
            ticket = self._num_tickets
            self._clips[ticket] = answer
        group = PoolGroup(ticket, payload=group_ref, promised=None, labels=())
        self._events.put(partial(self._take, group))
        # The decoder may be replaced on the way; the dispatcher limits how often.
        limit_s = self._rewards.max_attempts * (
            self._rewards.deadline_s + self._cluster.start_deadline_s
        )
        frames = answer.result(timeout=limit_s)
        return as_tensor(ray.get(frames, timeout=self._rewards.deadline_s))

    def scale(self, label: str, num_replicas: int) -> None:
        """Keep `num_replicas` of a scorer from now on.

        Raises:
            ValueError: no such scorer, or less than one replica.
        """
        if label not in self._positions:
            raise ValueError(
                f"rewards: no scorer {label!r} to scale; there: {', '.join(self._positions)}"
            )
        if num_replicas < 1:
            raise ValueError(f"rewards {label!r}: expected at least 1 replica, got {num_replicas}")
        self._events.put(partial(self._dispatcher.scale, label, num_replicas))

    def metrics(self) -> dict[str, float]:
        """Return counts since the start, latencies of the last calls, and what is so now."""
        return self._row(of_step=False)

    def step_metrics(self) -> dict[str, float]:
        """Return the same since this was called last, and start a new step."""
        return self._row(of_step=True)

    @property
    def scorer_infos(self) -> dict[str, ScorerInfo]:
        """What each scorer said of itself when it was opened, by label."""
        return dict(self._dispatcher.infos)

    @property
    def num_outstanding(self) -> int:
        """Groups submitted and not yet collected."""
        return self._num_outstanding

    @property
    def num_replaced(self) -> int:
        """Processes that died or were killed for lateness since the pool started."""
        return self._dispatcher.num_replaced

    def shutdown(self) -> None:
        """End processes and servers; groups in flight are forgotten."""
        self._stops.set()
        self._events.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join(timeout=30.0)
        self._actors.kill_all()
        if self._servers is not None:
            self._servers.shutdown()
            self._servers = None

    # The thread

    def _run(self) -> None:
        """Do what the dispatcher says and tell it what happens, until the pool is shut down."""
        try:
            while not self._stops.is_set():
                now = time.monotonic()
                for action in self._dispatcher.poll(now):
                    self._do(action)
                self._note_ready()
                timeout_s = self._dispatcher.next_wakeup(now) - time.monotonic()
                self._handle_events(max(0.0, timeout_s))
        except BaseException as error:  # carried to whoever waits in another thread
            self._fail(error)

    def _handle_events(self, timeout_s: float) -> None:
        try:
            event = self._events.get(timeout=timeout_s) if timeout_s else self._events.get_nowait()
            while True:
                event()
                event = self._events.get_nowait()
        except queue.Empty:
            return

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            for answer in self._clips.values():
                answer.set_exception(error)
            self._clips.clear()
            self._changed.notify_all()

    def _note_ready(self) -> None:
        if not self._is_ready and not self._dispatcher.incomplete:
            with self._changed:
                self._is_ready = True
                self._changed.notify_all()

    def _do(self, action: Action) -> None:
        match action:
            case Spawn():
                handle = partial(self._on_opened, action.process_id)
                self._actors.spawn(action.process_id, action.host, handle)
            case Kill():
                self._unconnected.pop(action.process_id, None)
                self._actors.kill(action.process_id)
            case Decode():
                self._actors.decode(action, partial(self._on_decoded, action.call))
            case ScoreBatch():
                self._actors.score(action, partial(self._on_scored, action.call))
            case Finished():
                self._hand_out(action)

    def _on_opened(self, process_id: int, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            self._on_open_error(process_id, error)
        elif process_id in self._actors:
            self._unconnected[process_id] = future.result()
            self._connect(process_id)

    def _on_open_error(self, process_id: int, error: BaseException) -> None:
        now = time.monotonic()
        if is_death(error):
            self._dispatcher.lost(process_id, _first_line(error), now)
        else:
            self._dispatcher.open_failed(process_id, cause_of(error), now)

    def _connect(self, process_id: int) -> None:
        """Tell a new process of its servers, or say that it is open where it needs none."""
        infos = self._unconnected[process_id]
        asking = [label for label, info in infos.items() if info.uses_server]
        for label in asking:
            if label not in self._servers_of:
                raise ValueError(
                    f"rewards.scorers.{self._positions[label]}.server: {label!r} asks a model "
                    "server; name one of rewards.servers"
                )
        if not asking:
            self._dispatcher.opened(process_id, self._unconnected.pop(process_id), time.monotonic())
        elif self._endpoints is not None:
            handle = partial(self._on_connected, process_id, list(asking))
            self._tell(process_id, asking, handle)

    def _tell(self, process_id: int, labels: Sequence[str], handle: Handler) -> None:
        assert self._endpoints is not None, "servers are up"
        found = {label: self._endpoints[self._servers_of[label]] for label in labels}
        for label, endpoints in found.items():
            self._dispatcher.connected(label, endpoints)
        self._actors.connect(process_id, found, handle)

    def _on_connected(self, process_id: int, waiting: list[str], future: Future[Any]) -> None:
        error = future.exception()
        if process_id not in self._unconnected:
            return
        if error is not None:
            del self._unconnected[process_id]
            self._on_open_error(process_id, error)
            return
        waiting.pop()  # which one does not matter
        if not waiting:
            self._dispatcher.opened(process_id, self._unconnected.pop(process_id), time.monotonic())

    def _on_decoded(self, call: Call, frames: Any, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            self._on_call_error(call, error)
        else:
            self._dispatcher.decoded(call.call_id, future.result(), frames, time.monotonic())

    def _on_scored(self, call: Call, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            self._on_call_error(call, error)
            return
        results, seconds = future.result()
        self._dispatcher.scored(call.call_id, results, seconds, time.monotonic())

    def _on_call_error(self, call: Call, error: BaseException) -> None:
        now = time.monotonic()
        if is_death(error):
            self._dispatcher.lost(call.process_id, f"it died: {_first_line(error)}", now)
        elif is_lost_object(error) and call.service != DECODER:
            self._dispatcher.frames_lost(call.call_id, now)
        else:
            self._dispatcher.call_failed(call.call_id, cause_of(error), now)

    def _hand_out(self, action: Finished) -> None:
        with self._changed:
            answer = self._clips.pop(action.ticket, None)
            if answer is not None:
                answer.set_result(action.frames)
                return
            self._answers.append((action.ticket, action.scores))
            self._changed.notify_all()

    # Servers

    def _all_endpoints(self) -> dict[str, Sequence[Endpoint]]:
        assert self._servers is not None, "this recipe has servers"
        return {name: self._servers.endpoints(name) for name in self._rewards.servers}

    def _watch_servers(self) -> None:
        """Restart dead servers and tell the pool's thread of new endpoints; its own thread."""
        servers = self._servers
        assert servers is not None, "this recipe has servers"
        try:
            while not self._stops.wait(SERVER_POLL_S):
                if servers.poll():
                    self._events.put(partial(self._servers_are, self._all_endpoints()))
        except Exception as error:  # carried to whoever waits in another thread
            self._events.put(partial(_raise, error))

    def _servers_are(self, endpoints: dict[str, Sequence[Endpoint]]) -> None:
        before, self._endpoints = self._endpoints or {}, endpoints
        for process_id in list(self._unconnected):
            self._connect(process_id)
        for process_id, services in self._dispatcher.processes().items():
            changed = [
                label
                for label, server in self._servers_of.items()
                if label in services and before.get(server) != endpoints[server]
            ]
            # A process that died meanwhile is told when its successor opens.
            self._tell(process_id, changed, lambda future: None)

    # Small things

    def _submit(
        self,
        *,
        payload: Any = None,
        info: ClipInfo | None = None,
        frames: Any = None,
        promised: ClipInfo | None = None,
        scorers: Sequence[str] | None = None,
    ) -> Ticket:
        unknown = set(scorers or ()) - set(self._positions)
        if unknown:
            raise ValueError(
                f"rewards: no scorer {sorted(unknown)[0]!r}; there: {', '.join(self._positions)}"
            )
        labels = [s for s in self._positions if scorers is None or s in scorers]
        with self._changed:
            if self._error:
                raise self._error
            self._num_tickets += 1
            self._num_outstanding += 1
            ticket = self._num_tickets
        group = PoolGroup(ticket, payload, promised, tuple(labels))
        if info is not None:
            group.info, group.frames = info, frames
        self._events.put(partial(self._take, group))
        return ticket

    def _take(self, group: PoolGroup) -> None:
        now = time.monotonic()
        group.scoring_since = now
        self._dispatcher.submit(group, now)

    def _check_specs(self) -> None:
        """Refuse scorers that need other clips than the model makes, before anything is sampled."""
        if self._model is None:
            return
        model = self._model
        shape = (model.num_frames, model.height, model.width)
        for label, info in self._dispatcher.infos.items():
            where = f"rewards.scorers.{self._positions[label]} {label!r}"
            check_clip(info.clip_spec, shape, fps=model.fps, where=where)

    def _check_info(self, info: ClipInfo) -> None:
        shape = (info.num_frames, info.height, info.width)
        for label, scorer in dict(self._dispatcher.infos).items():
            check_clip(scorer.clip_spec, shape, fps=info.fps, where=f"rewards {label!r}")

    def _describe_waiting(self, deadline_s: float) -> str:
        parts = [
            f"{missing} of {wanted} replicas of {names}"
            for names, (missing, wanted) in self._dispatcher.incomplete.items()
        ]
        return (
            f"rewards: {' and '.join(parts)} did not open within {deadline_s:g} s. Lower num_cpus, "
            "num_gpus or num_replicas of the scorers if the cluster has no room, or raise "
            "cluster.start_deadline_s when a model loads slowly."
        )

    def _row(self, *, of_step: bool) -> dict[str, float]:
        answer: Future[dict[str, float]] = Future()

        def read() -> None:
            row = self._metrics.metrics(self._dispatcher.live(), of_step=of_step)
            if of_step:
                self._metrics.start_step()
            answer.set_result(row)

        if self._thread.is_alive():
            self._events.put(read)
        else:
            read()
        row = answer.result(timeout=30.0)
        if self._servers is not None:
            row |= self._servers.metrics()
        return row


def _raise(error: BaseException) -> None:
    raise error


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".")
