"""The thread of the reward pool: does what the dispatcher says, and tells it what happens."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from rlvid.config.cluster import ClusterConfig
from rlvid.config.model import ModelConfig
from rlvid.config.rewards import RewardsConfig
from rlvid.ray_errors import ACTOR_LOST, cause_of, first_line, is_lost_object
from rlvid.rewards.base import Endpoint
from rlvid.rewards.dispatch.answers import Answers
from rlvid.rewards.dispatch.dispatcher import Dispatcher
from rlvid.rewards.dispatch.pool_group import PoolGroup
from rlvid.rewards.dispatch.processes import (
    DECODER,
    Action,
    Call,
    Decode,
    Finished,
    Kill,
    Probe,
    ScoreBatch,
    Spawn,
)
from rlvid.rewards.ray_actor import ActorSet, Handler
from rlvid.rewards.scoring import ScorerInfo

if TYPE_CHECKING:
    from rlvid.rewards.vllm.pool import ServerPool

SERVER_POLL_S = 1.0


class PoolLoop:
    """Owns the processes and, between `start` and `stop`, alone touches the dispatcher.

    Other threads hand it functions with `post`; what callers wait for it leaves in `Answers`.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        answers: Answers,
        rewards: RewardsConfig,
        model: ModelConfig | None,
        cluster: ClusterConfig,
    ) -> None:
        self._dispatcher = dispatcher
        self._answers = answers
        self._positions = {s.label: number for number, s in enumerate(rewards.scorers)}
        self._servers_of = {s.label: s.server for s in rewards.scorers if s.server}
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._actors = ActorSet(rewards, model, cluster, post=self._events.put)
        self._pids: dict[int, int] = {}
        """By process id of ours: what the system calls the processes that opened."""
        self._devices: dict[int, dict[str, str]] = {}
        """Likewise: service to the name of its GPU."""
        self._unconnected: dict[int, dict[str, ScorerInfo]] = {}
        """Processes that are open and wait to be told of their servers."""
        self._endpoints: Mapping[str, Sequence[Endpoint]] | None = None
        """By server; None until all servers answered."""
        self._thread = threading.Thread(target=self._run, name="reward-pool", daemon=True)
        self._stops = threading.Event()

    # Other threads

    def start(self) -> None:
        """Start the processes."""
        self._thread.start()

    def post(self, event: Callable[[], None]) -> None:
        """Have the thread call this; at once when it does not run."""
        if self._thread.is_alive():
            self._events.put(event)
        else:
            event()

    def submit(self, group: PoolGroup) -> None:
        """Have a group decoded and scored."""
        self._events.put(partial(self._take, group))

    def watch(self, servers: ServerPool) -> None:
        """Take the endpoints of the servers, which answer, and from then on what they become."""
        self._events.put(partial(self._servers_are, servers.all_endpoints()))
        watcher = threading.Thread(
            target=self._watch_servers, args=(servers,), name="servers", daemon=True
        )
        watcher.start()

    def stop(self) -> None:
        """End the thread and its processes; groups in flight are forgotten."""
        self._stops.set()
        self._events.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join(timeout=30.0)
        self._actors.kill_all()

    @property
    def num_processes(self) -> int:
        return len(self._actors)

    @property
    def pids(self) -> dict[int, int]:
        """Process ids of the system, each on its own node, by those of the dispatcher."""
        return self._pids.copy()

    # The thread

    def _take(self, group: PoolGroup) -> None:
        now = time.monotonic()
        group.scoring_since = now
        self._dispatcher.submit(group, now)

    def _run(self) -> None:
        """Do what the dispatcher says and tell it what happens, until the pool is shut down."""
        try:
            while not self._stops.is_set():
                now = time.monotonic()
                for action in self._dispatcher.poll(now):
                    self._do(action)
                if not self._dispatcher.incomplete:
                    self._answers.ready()
                timeout_s = self._dispatcher.next_wakeup(now) - time.monotonic()
                self._handle_events(max(0.0, timeout_s))
        except BaseException as error:  # carried to whoever waits in another thread
            self._answers.fail(error)

    def _handle_events(self, timeout_s: float) -> None:
        try:
            event = self._events.get(timeout=timeout_s) if timeout_s else self._events.get_nowait()
            while True:
                event()
                event = self._events.get_nowait()
        except queue.Empty:
            return

    def _do(self, action: Action) -> None:
        match action:
            case Spawn():
                handle = partial(self._on_opened, action.process_id)
                self._actors.spawn(action.process_id, action.host, handle)
            case Kill():
                self._unconnected.pop(action.process_id, None)
                self._pids.pop(action.process_id, None)
                self._devices.pop(action.process_id, None)
                self._actors.kill(action.process_id)
            case Probe():
                self._actors.probe(action.process_id, partial(self._on_probed, action.process_id))
            case Decode():
                self._actors.decode(action, partial(self._on_decoded, action.call))
            case ScoreBatch():
                self._actors.score(action, partial(self._on_scored, action.call))
            case Finished():
                self._answers.give(action.ticket, action.scores, action.frames)

    def _on_opened(self, process_id: int, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            self._on_open_error(process_id, error)
        elif process_id in self._actors:
            infos, pid, devices = future.result()
            self._unconnected[process_id], self._pids[process_id] = infos, pid
            self._devices[process_id] = devices
            self._connect(process_id)

    def _on_open_error(self, process_id: int, error: BaseException) -> None:
        now = time.monotonic()
        if isinstance(error, ACTOR_LOST):
            self._dispatcher.lost(process_id, first_line(error), now)
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
            self._opened(process_id)
            return
        waits = self._endpoints is None
        self._dispatcher.waits_for_servers(process_id, waits, time.monotonic())
        if not waits:
            handle = partial(self._on_connected, process_id, list(asking))
            self._tell(process_id, asking, handle)

    def _opened(self, process_id: int) -> None:
        infos, devices = self._unconnected.pop(process_id), self._devices.pop(process_id)
        self._dispatcher.opened(process_id, infos, time.monotonic(), devices=devices)

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
            self._opened(process_id)

    def _on_probed(self, process_id: int, future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            self._dispatcher.answered(process_id, time.monotonic())
        elif process_id in self._actors:  # else it was given up meanwhile
            self._on_open_error(process_id, error)

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
        results, cost = future.result()
        now = time.monotonic()
        self._dispatcher.scored(call.call_id, results, cost.seconds, now, flops=cost.flops)

    def _on_call_error(self, call: Call, error: BaseException) -> None:
        now = time.monotonic()
        if isinstance(error, ACTOR_LOST):
            self._dispatcher.lost(call.process_id, f"it died: {first_line(error)}", now)
        elif is_lost_object(error) and call.service != DECODER:
            self._dispatcher.frames_lost(call.call_id, now)
        else:
            self._dispatcher.call_failed(call.call_id, cause_of(error), now)

    # Servers

    def _watch_servers(self, servers: ServerPool) -> None:
        """Restart dead servers and tell the pool's thread of new endpoints; its own thread."""
        try:
            while not self._stops.wait(SERVER_POLL_S):
                if servers.poll():
                    self._events.put(partial(self._servers_are, servers.all_endpoints()))
        except Exception as error:  # carried to whoever waits in another thread
            self._events.put(partial(_raise, error))

    def _servers_are(self, endpoints: Mapping[str, Sequence[Endpoint]]) -> None:
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


def _raise(error: BaseException) -> None:
    raise error
