"""The model servers of a run: started on the nodes with their GPUs, watched, replaced.

    start() --> one VllmActor a replica, all at the same time --> wait_ready() --> endpoints(name)
    poll()  --> what the actors said last; a dead actor is replaced; names whose endpoints changed

Owned by the driver; `poll` may be called in another thread. A server that dies is restarted by its
own actor under the same URL, so a client only has to try again; only another actor means another
URL. A server with `keep_s` outlives its actor too, and the next one attaches to it (`lease.py`).
"""

from __future__ import annotations

import logging
import math
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from rlvid.config.cluster import ClusterConfig
from rlvid.config.node_group import said_of, share_of
from rlvid.config.rewards import ServerConfig
from rlvid.ray_errors import ACTOR_LOST, cause_of, first_line
from rlvid.rewards.base import Endpoint, RewardError, RewardTimeoutError
from rlvid.rewards.vllm.command import check_launch
from rlvid.rewards.vllm.external import ExternalServer
from rlvid.rewards.vllm.ray_actor import VllmActor
from rlvid.rewards.vllm.server import ServerStatus

logger = logging.getLogger(__name__)

SILENT_S = 30.0
"""An actor that does not answer for so long is taken for dead."""


@dataclass(slots=True, eq=False)
class _Replica:
    """One actor, its last word and the question that is on its way."""

    server: str
    index: int
    actor: Any
    question: ray.ObjectRef
    asked: float
    status: ServerStatus | None = None
    num_lost: int = 0


class ServerPool:
    """Starts, watches and ends the servers of `rewards.servers`."""

    def __init__(
        self,
        servers: Mapping[str, ServerConfig],
        cluster: ClusterConfig,
        *,
        node_group: str | None = None,
        log_folder: str | Path | None = None,
        run_folder: str | Path | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            node_group: of servers that name none (`rewards.node_group`).
            log_folder: gets a log file of each replica, on the node it runs; None: a new one, which
                is kept only when a server failed.
            run_folder: of the run, or its phase, for which servers with `keep_s` are kept: another
                pool of the same one attaches to them. None keeps none.
        """
        self._servers = dict(servers)
        self._cluster = cluster
        self._node_group = node_group
        self._log_folder = "" if log_folder is None else str(log_folder)
        self._own_folder = ""
        self._run = "" if run_folder is None else str(Path(run_folder).resolve())
        self._replicas: list[_Replica] = []
        self._external: dict[str, list[ExternalServer]] = {}
        self._keys: dict[str, str] = {}
        self._told: dict[str, tuple[Endpoint, ...]] = {}
        # A poll in another thread must not replace the actors that shutdown is killing.
        self._lock = threading.Lock()
        self._is_shut_down = False

    def start(self) -> None:
        """Start every server and return; `wait_ready` says whether they came up.

        Raises:
            ValueError: a model folder, interpreter or key that is not there.
        """
        for name, config in self._servers.items():
            if not config.urls:
                check_launch(config, where=f"rewards.servers.{name}")
        if not self._log_folder and any(not config.urls for config in self._servers.values()):
            self._log_folder = self._own_folder = tempfile.mkdtemp(prefix="rlvid-servers-")
        for name, config in self._servers.items():
            if config.urls:
                self._external[name] = [
                    ExternalServer(url, config, where=f"rewards.servers.{name}")
                    for url in config.urls
                ]
                continue
            self._keys[name] = secrets.token_urlsafe(32)
            for index in range(config.num_replicas):
                self._replicas.append(self._spawn(name, index))
        for external in self._all_external():
            external.start()

    def wait_ready(self) -> None:
        """Return when every replica of every server answers.

        Raises:
            RewardTimeoutError: a server took longer than its `start_deadline_s`.
            RewardError: a server cannot be started; with the last lines of its log.
        """
        started = time.monotonic()
        while True:
            self.poll()
            waiting = {
                name: self._servers[name].start_deadline_s
                for name in self._servers
                if len(self.endpoints(name)) < self._num_wanted(name)
            }
            if not waiting:
                return
            for name, deadline_s in waiting.items():
                if time.monotonic() - started > deadline_s:
                    raise RewardTimeoutError(self._late(name, deadline_s))
            time.sleep(0.2)

    def all_endpoints(self) -> dict[str, tuple[Endpoint, ...]]:
        """Return the endpoints of every server, by its name."""
        return {name: self.endpoints(name) for name in self._servers}

    def endpoints(self, name: str) -> tuple[Endpoint, ...]:
        """Return the replicas of a server that have come up and were not given up.

        One that is being restarted stays in: it comes back under the same URL.
        """
        if name not in self._servers:
            raise ValueError(f"servers: no server {name!r}; there: {', '.join(self._servers)}")
        own = [r.status for r in self._replicas if r.server == name and r.status is not None]
        found = [
            Endpoint(
                url=status.url,
                model=name,
                model_digest=status.model_digest,
                api_key=status.api_key,
            )
            for status in own
            if status.was_ready and status.state != "failed"
        ]
        for external in self._external.get(name, []):
            endpoint = external.endpoint
            found += [] if endpoint is None else [endpoint]
        return tuple(found)

    def poll(self) -> set[str]:
        """Replace dead actors; return the servers whose endpoints changed since the last call.

        Takes milliseconds: it never waits for an answer, only takes those that are there.

        Raises:
            RewardError: a server has no replica left, with the reason; or one that never came up
                cannot be started.
        """
        with self._lock:
            return set() if self._is_shut_down else self._poll()

    def _poll(self) -> set[str]:
        for replica in list(self._replicas):
            self._hear(replica)
        for name, config in self._servers.items():
            own = [r for r in self._replicas if r.server == name]
            failed = [r.status for r in own if r.status and r.status.state == "failed"]
            if failed and (len(failed) == len(own) or not all(s.was_ready for s in failed)):
                raise RewardError(f"rewards.servers.{name}: {failed[0].detail}")
            if config.urls:
                for external in self._external.get(name, []):
                    external.raise_refusal()
        now = {name: self.endpoints(name) for name in self._servers}
        changed = {name for name, found in now.items() if found != self._told.get(name, ())}
        self._told = now
        return changed

    def metrics(self) -> dict[str, float]:
        """Return `servers/<server>/...`, see the metrics table."""
        values: dict[str, float] = {}
        for name in self._servers:
            own = [r for r in self._replicas if r.server == name]
            heard = [r.status for r in own if r.status is not None]
            external = self._external.get(name, [])
            up = sum(s.state == "ready" for s in heard) + sum(e.is_up for e in external)
            values[f"servers/{name}/up"] = float(up)
            values[f"servers/{name}/restarts"] = float(
                sum(s.num_restarts for s in heard) + sum(r.num_lost for r in own)
            )
            if own:
                values[f"servers/{name}/reattached"] = float(sum(s.is_reattached for s in heard))
            if heard:
                values[f"servers/{name}/start_s"] = max(s.start_s for s in heard)
        return values

    def processes(self) -> list[tuple[str, int, int]]:
        """Return (server, replica, process group on its node) of what runs, its guard first."""
        return [
            (r.server, r.index, r.status.group)
            for r in self._replicas
            if r.status is not None and r.status.group
        ]

    def shutdown(self, *, keeps_servers: bool = False) -> None:
        """End every server; returns when their processes are gone or 40 s passed.

        Args:
            keeps_servers: leave those with `keep_s` to their leases, for a driver that resumes.
        """
        with self._lock:
            self._is_shut_down = True
        for external in self._all_external():
            external.stop()
        # One that was never heard has no room on a node yet, or only just: it would not answer.
        heard = [replica for replica in self._replicas if replica.status is not None]
        stopped = [replica.actor.stop.remote(keeps_servers) for replica in heard]
        if stopped:
            ray.wait(stopped, num_returns=len(stopped), timeout=40.0)
        for replica in self._replicas:
            ray.kill(replica.actor)  # its server's guard sees the pipe close and ends the rest
        is_sound = all(r.status and r.status.state != "failed" for r in self._replicas)
        if self._own_folder and is_sound:
            shutil.rmtree(self._own_folder, ignore_errors=True)
        self._replicas = []
        self._external = {}

    def _hear(self, replica: _Replica) -> None:
        """Take the actor's answer if it is there and ask again."""
        ready, _ = ray.wait([replica.question], timeout=0, fetch_local=False)
        now = time.monotonic()
        if not ready:
            limit_s = self._silence_s(replica)
            if now - replica.asked > limit_s:
                self._replace(replica, f"did not answer for {limit_s:g} s")
            return
        try:
            replica.status = ray.get(replica.question, timeout=5.0)
        except ACTOR_LOST as error:
            self._replace(replica, first_line(error))
            return
        except RayTaskError as error:
            raise cause_of(error) from error
        replica.question = replica.actor.status.remote()
        replica.asked = now

    def _silence_s(self, replica: _Replica) -> float:
        """Return how long an actor may say nothing.

        Until it has room on a node it cannot answer, which is no fault of its own: `wait_ready` has
        the deadline of the first ones, a successor has the same.
        """
        if replica.status is not None:
            return SILENT_S
        return self._servers[replica.server].start_deadline_s if replica.num_lost else math.inf

    def _replace(self, replica: _Replica, reason: str) -> None:
        config = self._servers[replica.server]
        num_lost = replica.num_lost + 1
        if num_lost > config.max_restarts:
            raise RewardError(
                f"rewards.servers.{replica.server}: the actor of replica {replica.index} died "
                f"{num_lost} times, the last time: {reason}. See its log in {self._log_folder}; "
                "memory is the usual reason."
            )
        logger.warning(
            "server actor replaced server=%s replica=%d reason=%r",
            replica.server,
            replica.index,
            reason,
        )
        ray.kill(replica.actor)
        new = self._spawn(replica.server, replica.index)
        new.num_lost = num_lost
        self._replicas[self._replicas.index(replica)] = new

    def _spawn(self, name: str, index: int) -> _Replica:
        config = self._servers[name]
        actor = VllmActor.options(  # type: ignore[attr-defined]
            num_cpus=config.num_cpus,
            num_gpus=config.num_gpus,
            resources=share_of(self._node_group_of(name)),
        ).remote(config, name, self._keys[name], self._log_folder, index, self._run)
        question = actor.open.remote(_is_one_machine())
        return _Replica(name, index, actor, question, time.monotonic())

    def _node_group_of(self, name: str) -> str | None:
        return self._servers[name].node_group or self._node_group

    def _num_wanted(self, name: str) -> int:
        config = self._servers[name]
        return len(config.urls) or config.num_replicas

    def _all_external(self) -> list[ExternalServer]:
        return [external for group in self._external.values() for external in group]

    def _late(self, name: str, deadline_s: float) -> str:
        heard = [r.status for r in self._replicas if r.server == name and r.status is not None]
        detail = "; ".join(s.detail for s in heard if s.state != "ready")
        detail = detail or "; ".join(e.detail for e in self._external.get(name, ()) if not e.is_up)
        config = self._servers[name]
        return (
            f"rewards.servers.{name}: {len(self.endpoints(name))} of {self._num_wanted(name)} "
            f"replicas answered within {deadline_s:g} s. "
            + (
                detail
                or f"No actor with num_cpus {config.num_cpus:g} and num_gpus "
                f"{config.num_gpus:g} found room in the cluster."
                + said_of(
                    self._node_group_of(name),
                    f"rewards.servers.{name}.node_group, or rewards.node_group",
                )
            )
            + f" Raise rewards.servers.{name}.start_deadline_s if it is only slow."
        )


def _is_one_machine() -> bool:
    """Whether every node of the cluster is this machine, so that loopback reaches them all."""
    addresses = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    return len(addresses) <= 1
