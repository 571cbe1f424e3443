"""The plain workers of the pool in processes of their own; adds nothing but the processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import ray

from rlvid.collector import paused_collector
from rlvid.config.cluster import ClusterConfig
from rlvid.config.model import ModelConfig
from rlvid.config.node_group import share_of
from rlvid.config.rewards import RewardsConfig, ScorerConfig
from rlvid.priority import yield_to_starting
from rlvid.process_env import runtime_env_of
from rlvid.records import Prompt, RolloutGroup
from rlvid.rewards.base import Endpoint
from rlvid.rewards.decoding import ClipInfo, DecodeWorker, Frames, open_decode_worker
from rlvid.rewards.dispatch.processes import DECODER, Decode, Host, ScoreBatch
from rlvid.rewards.flop_count import CallCost, decoder_device
from rlvid.rewards.scoring import (
    ItemResult,
    ScoreItem,
    ScorerInfo,
    ScorerWorker,
    open_scorer_worker,
    timed_score,
)


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"control": 1, "probe": 1})
class RewardActor:
    """A DecodeWorker, ScorerWorkers, or both; references among the arguments arrive resolved."""

    def __init__(
        self,
        scorers: Mapping[int, ScorerConfig],
        *,
        has_decoder: bool,
        model: ModelConfig | None,
        num_threads: int,
    ) -> None:
        """`scorers` are entries of `rewards.scorers` by position."""
        self._configs = scorers
        self._has_decoder = has_decoder
        self._model = model
        self._num_threads = num_threads
        self._scorers: dict[str, ScorerWorker] = {}

    def open(self) -> tuple[dict[str, ScorerInfo], int, dict[str, str]]:
        """Load scorers and decoder; not in __init__, whose errors Ray wraps beyond reading.

        Returns:
            What the scorers say of themselves, the id of this process, and the name of the GPU of
            each service, "" without one.
        """
        import cv2
        import torch

        torch.set_num_threads(self._num_threads)
        cv2.setNumThreads(self._num_threads)  # it has threads of its own, deaf to OMP_NUM_THREADS
        with paused_collector():
            for position, config in self._configs.items():
                self._scorers[config.label] = open_scorer_worker(
                    config, position, counts_flops=True
                )
            if self._has_decoder:
                self._decoder: DecodeWorker = open_decode_worker(self._model)
        yield_to_starting()
        devices = {label: scorer.device_name for label, scorer in self._scorers.items()}
        if self._has_decoder:
            devices[DECODER] = decoder_device(self._model)
        infos = {label: scorer.info() for label, scorer in self._scorers.items()}
        return infos, os.getpid(), devices

    @ray.method(num_returns=2)
    def decode(self, group: RolloutGroup) -> tuple[Frames, ClipInfo]:
        """The frames stay in the object store, owned by the driver, which fetches the info only."""
        return self._decoder.decode(group)

    @ray.method(num_returns=2)
    def decode_files(
        self, files: Sequence[bytes], prompt: Prompt, group_id: str
    ) -> tuple[Frames, ClipInfo]:
        return self._decoder.decode_files(files, prompt, group_id)

    def score(
        self, label: str, items: Sequence[ScoreItem], fps: float, *frames: Frames
    ) -> tuple[list[ItemResult], CallCost]:
        """Return results and their cost; the frames are read where they lie, without a copy."""
        return timed_score(self._scorers[label], items, frames, fps)

    @ray.method(concurrency_group="control")
    def connect(self, label: str, endpoints: Sequence[Endpoint]) -> None:
        """Runs beside `score`: a call that waits for a dead server must learn of its successor."""
        self._scorers[label].connect(endpoints)

    @ray.method(concurrency_group="probe")
    def probe(self) -> None:
        """Runs beside everything else: that it returns is what it says."""


Handler = Callable[[Future[Any]], None]
"""Takes the result of a call, or its error."""


class ActorSet:
    """The pool's actors by process id: starts, calls, watches and kills them."""

    def __init__(
        self,
        rewards: RewardsConfig,
        model: ModelConfig | None,
        cluster: ClusterConfig,
        *,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        """`post` has a function called in the pool's thread; Ray answers in threads of its own."""
        self._configs = {
            config.label: (position, config) for position, config in enumerate(rewards.scorers)
        }
        self._model = model
        self._num_threads = cluster.threads_per_role
        self._post = post
        self._actors: dict[int, Any] = {}

    def __contains__(self, process_id: int) -> bool:
        return process_id in self._actors

    def __len__(self) -> int:
        return len(self._actors)

    def spawn(self, process_id: int, host: Host, handle: Handler) -> None:
        """Start an actor; `handle` gets what `open` returns, see there."""
        own = [self._configs[service] for service in host.services if service != DECODER]
        others = dict(host.runtime_env)
        threads = {"OMP_NUM_THREADS": str(self._num_threads)}
        variables = {**threads, **others.pop("env_vars", {})}
        actor = RewardActor.options(  # type: ignore[attr-defined]
            num_cpus=host.num_cpus,
            num_gpus=host.num_gpus,
            resources=share_of(host.node_group),
            runtime_env=runtime_env_of(variables, others),
            scheduling_strategy="SPREAD" if host.spread else "DEFAULT",
        ).remote(
            dict(own),
            has_decoder=DECODER in host.services,
            model=self._model,
            num_threads=self._num_threads,
        )
        self._actors[process_id] = actor
        self._watch(actor.open.remote(), handle)

    def kill(self, process_id: int) -> None:
        actor = self._actors.pop(process_id, None)
        if actor is not None:
            ray.kill(actor)

    def kill_all(self) -> None:
        for process_id in list(self._actors):
            self.kill(process_id)

    def decode(self, action: Decode, handle: Callable[[Any, Future[Any]], None]) -> None:
        """Have a group decoded; `handle` gets the reference of the frames, and the info."""
        actor, payload = self._actors[action.call.process_id], action.payload
        if isinstance(payload, tuple):
            frames, info = actor.decode_files.remote(*payload)
        else:
            frames, info = actor.decode.remote(payload)
        self._watch(info, partial(handle, frames))

    def score(self, action: ScoreBatch, handle: Handler) -> None:
        """Have a batch scored; `handle` gets the results and what they took."""
        actor, call = self._actors[action.call.process_id], action.call
        answer = actor.score.remote(call.service, action.items, action.fps, *action.frames)
        self._watch(answer, handle)

    def probe(self, process_id: int, handle: Handler) -> None:
        """Ask a process whether it lives; `handle` gets None, or its death."""
        self._watch(self._actors[process_id].probe.remote(), handle)

    def connect(
        self, process_id: int, endpoints: Mapping[str, Sequence[Endpoint]], handle: Handler
    ) -> None:
        """Tell a process of the endpoints of its scorers, by label; `handle` comes once a label."""
        for label, found in endpoints.items():
            self._watch(self._actors[process_id].connect.remote(label, found), handle)

    def _watch(self, ref: ray.ObjectRef, handle: Handler) -> None:
        ref.future().add_done_callback(lambda future: self._post(partial(handle, future)))
