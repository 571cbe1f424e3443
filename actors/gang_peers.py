"""The peers of a rollout actor together: what they are started with, loaded, woken, lost.

They are interpreters of their own on the leader's node, each with one of its devices. They meet on
loopback at a port the system picks, under a token that only they are told.
"""

from __future__ import annotations

import json
import os
import secrets
import time
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
        policy: Policy,
        model_config: ModelConfig,
        learner_config: LearnerConfig | None,
        *,
        num_threads: int,
    ) -> None:
        """Start them; they load the policy while the caller does.

        Raises:
            ValueError: there are too few devices.
            GangError: one could not be started.
        """
        kind = _device_kind(model_config)
        self._settings = settings
        self.device = torch.device(kind)
        self.backend: GroupBackend = "nccl" if kind == "cuda" else "gloo"
        self._listening, port = open_store(HOST)
        token = secrets.token_hex(16)
        start = timedelta(seconds=settings.start_deadline_s)
        self.store: Any = join_store(HOST, port, token, start)
        """Where the ranks meet; torch's type."""
        self._num_loads = 0
        self._peers: list[PeerProcess] = []
        told = {
            "num_ranks": settings.num_ranks,
            "backend": self.backend,
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
        try:
            for rank, variables in _environments(settings.num_ranks, kind).items():
                line = json.dumps({"rank": rank, **told}).encode() + b"\n"
                self._peers.append(PeerProcess(rank, line, variables))
        except BaseException:
            self.end()
            raise

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
        seconds = self._settings.start_deadline_s
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
            f"{self._settings.deadline_s:g} s (of rollout.stall_s), or this rank failed: {first}"
        )

    def end(self) -> None:
        """Kill them and wait until they are gone."""
        for peer in self._peers:
            peer.end()


def _device_kind(config: ModelConfig) -> str:
    if config.device not in ("auto", "cuda", "cpu"):
        raise ValueError(
            f"model.device: expected auto, cuda or cpu with rollout.sequence_parallel, got "
            f"{config.device!r}: each process has a device of its own"
        )
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
