"""A Worker in a process of its own, and the driver's handles of such processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from rlvid.actors.spares import Spares
from rlvid.actors.worker import Worker, WorkerSettings, open_worker, prepare_worker
from rlvid.collector import paused_collector
from rlvid.config import RolloutConfig
from rlvid.config.node_group import share_of
from rlvid.group_digest import digest_of_group
from rlvid.models.policy import Policy
from rlvid.observability.memory_peak import peak_mib
from rlvid.observability.mfu import device_name
from rlvid.priority import yield_to_starting
from rlvid.process_env import runtime_env_of
from rlvid.records import GroupSummary, GroupTask, RolloutGroup, WeightsManifest, WeightsReceipt
from rlvid.weights import WeightsError
from rlvid.weights.broadcast import BroadcastPart

LEAVE_S = 1.0
"""In which a process goes by itself when Ray ends its actor."""
REMEMBERED = 64
"""Leases an actor remembers to have begun; it holds two at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where an actor's process is, to send it signals."""

    node_id: str
    pid: int


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"control": 2, "weights": 1})
class RolloutActor:
    """See Worker; arguments that are object references arrive resolved.

    `sample`, `open`, `use_policy` and `canary` come one after the other; `weights` and `control`
    are answered beside them.
    """

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._lock = threading.Lock()
        self._begun: deque[str] = deque(maxlen=REMEMBERED)
        self._withdrawn: deque[str] = deque(maxlen=REMEMBERED)

    @ray.method(concurrency_group="control")
    def address(self) -> Address:
        """Answers as soon as there is a process."""
        node_id = ray.get_runtime_context().get_node_id()
        return Address(node_id=node_id, pid=os.getpid())

    def prepare(self, use: str) -> None:
        """Import what `open` will need."""
        with paused_collector():
            prepare_worker(use)

    def open(self, settings: WorkerSettings, actor_id: str) -> str:
        """Load the policy; not in __init__, whose errors Ray wraps beyond reading.

        Returns:
            The name of its device, "" without a GPU.
        """
        with paused_collector():
            self._worker = open_worker(settings, actor_id)
        return device_name()

    @ray.method(num_returns=2)
    def sample(self, task: GroupTask) -> tuple[RolloutGroup | None, GroupSummary | None]:
        """The group stays in the object store; the driver fetches the summary only.

        Returns:
            (None, None) for a task that was withdrawn before its turn.
        """
        with self._lock:
            if task.lease_id in self._withdrawn:
                return None, None
            self._begun.append(task.lease_id)
        group = self._open_worker.sample(task)
        if len(self._begun) == 1:
            yield_to_starting()
        summary = group.summary(digest_of_group(group))
        return group, replace(summary, peak_mib=peak_mib())

    @ray.method(concurrency_group="control")
    def withdraw(self, lease_id: str) -> bool:
        """Take back a task that waits here; False when it has begun, and goes on."""
        with self._lock:
            if lease_id in self._begun:
                return False
            self._withdrawn.append(lease_id)
            return True

    @ray.method(concurrency_group="control")
    def progress(self) -> int:
        """Return the denoising steps done since the process began; 0 while it loads."""
        return 0 if self._worker is None else self._worker.num_steps

    @ray.method(concurrency_group="weights")
    def stage_weights(self, manifest: WeightsManifest, *parts: Any) -> WeightsReceipt:
        """Take a publish while a group is being sampled; the next one is sampled with it.

        Where a broadcast fails, or this actor was not among its members, the object store serves.
        """
        try:
            return self._open_worker.stage(manifest, parts)
        except WeightsError:
            broadcasts = [part for part in parts if isinstance(part, BroadcastPart)]
            if not broadcasts:
                raise
        part = broadcasts[0]
        buckets = ray.get(list(part.fallback), timeout=part.deadline_s)
        return self._open_worker.stage(manifest, buckets)

    def use_policy(self, policy: Policy) -> None:
        self._open_worker.use_policy(policy)

    def canary(self, latents: Tensor, sigma: Tensor, text: str) -> tuple[tuple[int, int], Tensor]:
        """Return the (incarnation, version) that answered, and the velocity."""
        velocity = self._open_worker.canary(latents, sigma, text)
        return self._open_worker.live, velocity

    @property
    def _open_worker(self) -> Worker:
        assert self._worker is not None, "open() comes first"
        return self._worker


@ray.remote(num_cpus=0, max_retries=0)
def _signal_there(pid: int, number: int) -> bool:
    return signal_process(pid, number)


def signal_process(pid: int, number: int) -> bool:
    """Send a signal to a rollout actor of this machine; False when the pid is none any more."""
    if not is_rollout_actor(pid):
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def is_rollout_actor(pid: int) -> bool:
    """Ray names its workers by what they run; a pid may belong to somebody else by now."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::RolloutActor")
    except (FileNotFoundError, ProcessLookupError):
        return False


Handler = Callable[[Future[Any]], None]
"""Takes the result of a call, or its error."""


class ActorSet:
    """The pool's actors by id: starts, calls, watches and kills them."""

    def __init__(
        self, config: RolloutConfig, *, post: Callable[[Callable[[], None]], None]
    ) -> None:
        """`post` has a function called in the pool's thread; Ray answers in threads of its own."""
        self._config = config
        self._post = post
        self._actors: dict[str, Any] = {}
        self._spares = Spares(config.num_spares, post=post)
        self._addresses: dict[str, Address] = {}

    def __contains__(self, actor_id: str) -> bool:
        return actor_id in self._actors

    def spawn(
        self, actor_id: str, settings: WorkerSettings, appeared: Handler, opened: Handler
    ) -> None:
        """Load the policy in a spare process, or in one that is started."""
        spare = self._spares.take()
        if spare is None:
            actor = self._create(settings, num_cpus=self._config.cpus_per_actor)
            address = actor.address.remote()
        else:
            actor, address = spare.actor, spare.address
        self._actors[actor_id] = actor
        self._watch(address, appeared)
        self._watch(actor.open.remote(settings, actor_id), opened)

    @property
    def lacks_spare(self) -> bool:
        return self._spares.lacks_one

    def add_spare(self, settings: WorkerSettings) -> None:
        """Start a process that whoever joins next will take."""
        actor = self._create(settings, num_cpus=0.0)
        self._spares.add(actor, actor.prepare.remote(settings.use))

    def gauges(self) -> dict[str, float]:
        """Return the present numbers under the names of the metrics table."""
        return {"rollout/actors/spare": float(self._spares.num_ready)}

    def _create(self, settings: WorkerSettings, *, num_cpus: float) -> Any:
        config = self._config
        options: dict[str, Any] = {}
        if config.labels:
            options["label_selector"] = config.labels
        if config.fallback:
            options["fallback_strategy"] = [{"label_selector": one} for one in config.fallback]
        return RolloutActor.options(  # type: ignore[attr-defined]
            num_cpus=num_cpus,
            num_gpus=config.gpus_per_actor,
            resources=share_of(config.node_group),
            runtime_env=runtime_env_of({"OMP_NUM_THREADS": str(settings.num_threads)}),
            **options,
        ).remote()

    def is_at(self, actor_id: str, address: Address) -> None:
        """Note where an actor's process turned out to be."""
        if actor_id in self._actors:
            self._addresses[actor_id] = address

    def sample(self, actor_id: str, task: GroupTask, handle: Callable[[Any, Any], None]) -> None:
        """Have a group sampled; `handle` gets its reference and the future of its summary."""
        group, summary = self._actors[actor_id].sample.remote(task)
        self._watch(summary, partial(handle, group))

    def call(self, actor_id: str, method: str, handle: Handler, *args: Any) -> None:
        """Call a method with one result."""
        self._watch(getattr(self._actors[actor_id], method).remote(*args), handle)

    def send_signal(self, actor_id: str, number: int) -> None:
        """Send a signal to an actor's process, on whichever node it is."""
        address = self._addresses.get(actor_id)
        if address is not None:
            self._signal(address, number)

    def kill(self, actor_id: str, *, is_stuck: bool) -> None:
        """End an actor; Ray's own kill leaves a stopped process as it is, with all it holds."""
        actor = self._actors.get(actor_id)
        if actor is None:
            return
        if is_stuck:
            self.send_signal(actor_id, signal.SIGKILL)
        ray.kill(actor)
        del self._actors[actor_id]
        self._addresses.pop(actor_id, None)

    def kill_all(self) -> None:
        """End all actors; SIGKILL is for those that do not go, since Ray reports it as a crash."""
        self._spares.kill_all()
        addresses = list(self._addresses.values())
        for actor_id in list(self._actors):
            self.kill(actor_id, is_stuck=False)
        here = ray.get_runtime_context().get_node_id() if addresses else ""
        until = time.monotonic() + LEAVE_S
        while time.monotonic() < until and any(
            address.node_id == here and is_rollout_actor(address.pid) for address in addresses
        ):
            time.sleep(0.01)
        for address in addresses:
            self._signal(address, signal.SIGKILL)

    def crash(self, actor_id: str) -> None:
        """End an actor as a crash would, and say nothing of it.

        Ray's kill alone comes later than a call made after it, which a quick actor still answers.
        """
        self.send_signal(actor_id, signal.SIGKILL)
        ray.kill(self._actors[actor_id])

    def _signal(self, address: Address, number: int) -> None:
        if address.node_id == ray.get_runtime_context().get_node_id():
            signal_process(address.pid, number)
            return
        there = NodeAffinitySchedulingStrategy(address.node_id, soft=False)
        _signal_there.options(scheduling_strategy=there).remote(address.pid, number)

    def _watch(self, ref: ray.ObjectRef, handle: Handler) -> None:
        ref.future().add_done_callback(lambda future: self._post(partial(handle, future)))


def arguments(payload: Any) -> Sequence[Any]:
    """Return what of a publish is handed to `stage_weights` beside its manifest."""
    return payload if isinstance(payload, Sequence) else (payload,)
