"""The peers of a rollout actor together: what they are started with, loaded, woken, lost.

They are interpreters of their own on the leader's node, each with one of its devices. They meet on
loopback at a port the system picks, under a token that only they are told.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from rlvid.actors.gang_process import GangError, PeerProcess
from rlvid.config import LearnerConfig, ModelConfig
from rlvid.models.policy import Policy
from rlvid.process_groups import GroupBackend, join_store, open_store

HOST = "127.0.0.1"
POLL_S = 0.05
"""Between two looks whether peers have loaded."""
LAST_WORDS_S = 2.0
"""In which a peer whose connection broke is found gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GangSettings:
    """What of the recipe a gang is made by."""

    num_ranks: int
    """`rollout.sequence_parallel`."""
    start_deadline_s: float
    """For peers to start and load: `cluster.start_deadline_s`."""
    deadline_s: float
    """Of each exchange, and of each forward."""


class Peers:
    """Ranks 1 to n - 1; rank 0 is this process."""

    def __init__(
        self,
        settings: GangSettings,
        processes: Sequence[PeerProcess],
        *,
        backend: GroupBackend,
        store: Any,
        listening: Any,
    ) -> None:
        """Hold what `start_peers` started.

        Args:
            store: where the ranks meet; torch's type.
            listening: the end of it that listens, until this object goes.
        """
        self.settings = settings
        self.backend = backend
        self.device = torch.device("cuda" if backend == "nccl" else "cpu")
        self.store = store
        self._listening = listening
        self._num_loads = 0
        self._peers = processes

    @property
    def pids(self) -> tuple[int, ...]:
        """In order of rank."""
        return tuple(peer.pid for peer in self._peers)

    @property
    def are_alive(self) -> bool:
        return all(peer.is_alive for peer in self._peers)

    def wait_loaded(self) -> None:
        """Block until all have loaded the policy they were told last.

        Raises:
            GangError: one ended, or is late.
        """
        seconds = self.settings.start_deadline_s
        until = time.monotonic() + seconds
        keys = {peer.rank: f"loaded/{self._num_loads}/{peer.rank}" for peer in self._peers}
        self._num_loads += 1
        while not self.store.check(list(keys.values())):
            if not self.are_alive:
                raise GangError(self.why(None))
            if time.monotonic() > until:
                late = [rank for rank, key in keys.items() if not self.store.check([key])]
                raise GangError(
                    f"rollout.sequence_parallel: ranks {late} did not load their policy in "
                    f"cluster.start_deadline_s, {seconds:g} s; raise it, or look at the node's disk"
                )
            time.sleep(POLL_S)

    def wake(self) -> None:
        """Have all take part in the exchange that comes."""
        for peer in self._peers:
            peer.wake()

    def why(self, error: Exception | None) -> str:
        """Return in one line who broke off an exchange, and how; `error` is what it raised here."""
        gone = [peer for peer in self._peers if not peer.is_alive]
        # A connection breaks before its process is gone.
        for peer in gone or (self._peers[:1] if error is not None else []):
            peer.obituary(LAST_WORDS_S)
        ended = [(peer.ended_at, peer) for peer in self._peers if peer.ended_at is not None]
        where = f"rollout.sequence_parallel: process {os.getpid()} lost its peers: "
        if ended:
            return where + min(ended, key=lambda pair: pair[0])[1].obituary(0.0)
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return (
            f"{where}none of {list(self.pids)} ended; one did not answer within "
            f"{self.settings.deadline_s:g} s (of rollout.stall_s), or this rank failed: {first}"
        )

    def end(self) -> None:
        """Kill them and wait until they are gone."""
        for peer in self._peers:
            peer.end()


def start_peers(
    settings: GangSettings,
    policy: Policy,
    model_config: ModelConfig,
    learner_config: LearnerConfig | None,
    *,
    num_threads: int,
) -> Peers:
    """Start the peers of this process; they load the policy while the caller does.

    Raises:
        ValueError: there are too few devices, or the policy is none that can be spread.
        GangError: one could not be started.
    """
    check_policy(policy)
    kind = _device_kind(model_config, settings.num_ranks)
    backend: GroupBackend = "nccl" if kind == "cuda" else "gloo"
    listening, port = open_store(HOST)
    token = secrets.token_hex(16)
    store = join_store(HOST, port, token, timedelta(seconds=settings.start_deadline_s))
    told = {
        "num_ranks": settings.num_ranks,
        "backend": backend,
        "device": kind,
        "host": HOST,
        "port": port,
        "token": token,
        "deadline_s": settings.deadline_s,
        "start_deadline_s": settings.start_deadline_s,
        "num_threads": num_threads,
        "policy": policy.to_json(),
        "model": model_config.model_copy(update={"device": kind}).model_dump(mode="json"),
        "learner": learner_config and learner_config.model_dump(mode="json"),
    }
    processes: list[PeerProcess] = []
    try:
        for rank, variables in _environments(settings.num_ranks, kind).items():
            line = json.dumps({"rank": rank, **told}).encode() + b"\n"
            processes.append(PeerProcess(rank, line, variables))
    except BaseException:
        for process in processes:
            process.end()
        raise
    return Peers(settings, processes, backend=backend, store=store, listening=listening)


def check_policy(policy: Policy) -> None:
    """Refuse a policy whose forwards cannot be spread.

    Raises:
        ValueError: it is a causal student.
    """
    student = policy.sampling
    if student is not None and student.layout is not None:
        raise ValueError(
            f"rollout.sequence_parallel: {policy.model_path} is a causal student, whose cache of "
            "keys and values no plan of tokens knows: expected 1. Sample it with one process"
        )


def check_device(config: ModelConfig, num_ranks: int) -> None:
    """Refuse `model.device` where it names one device for all processes; ValueError says so."""
    if config.device not in ("auto", "cuda", "cpu"):
        raise ValueError(
            f"model.device: expected auto, cuda or cpu with rollout.sequence_parallel {num_ranks}, "
            f"got {config.device!r}: each process has a device of its own"
        )


def _device_kind(config: ModelConfig, num_ranks: int) -> str:
    check_device(config, num_ranks)
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def _environments(num_ranks: int, device: str) -> dict[int, dict[str, str]]:
    """Return rank to the variables that leave it one device; the leader, rank 0, has the first."""
    if device == "cpu":
        return {rank: {} for rank in range(1, num_ranks)}
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        devices = [str(number) for number in range(torch.cuda.device_count())]
    else:
        devices = [name.strip() for name in listed.split(",") if name.strip()]
    if len(devices) < num_ranks:
        raise ValueError(
            f"rollout.sequence_parallel: expected {num_ranks} GPUs for this actor, it sees "
            f"{len(devices)}; set rollout.num_gpus to 1, for each of its processes"
        )
    return {rank: {"CUDA_VISIBLE_DEVICES": devices[rank]} for rank in range(1, num_ranks)}
