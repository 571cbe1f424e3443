"""The plain workers of the pool in a process of their own; adds nothing but the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray

from rlvid.config.model import ModelConfig
from rlvid.config.rewards import ScorerConfig
from rlvid.records import Prompt, RolloutGroup
from rlvid.rewards.base import Endpoint
from rlvid.rewards.decoding import ClipInfo, DecodeWorker, Frames, open_decode_worker
from rlvid.rewards.scoring import (
    ItemResult,
    ScoreItem,
    ScorerInfo,
    ScorerWorker,
    open_scorer_worker,
    timed_score,
)


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"control": 1})
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

    def open(self) -> dict[str, ScorerInfo]:
        """Load scorers and decoder; not in __init__, whose errors Ray wraps beyond reading."""
        import cv2
        import torch

        torch.set_num_threads(self._num_threads)
        cv2.setNumThreads(self._num_threads)  # it has threads of its own, deaf to OMP_NUM_THREADS
        for position, config in self._configs.items():
            self._scorers[config.label] = open_scorer_worker(config, position)
        if self._has_decoder:
            self._decoder: DecodeWorker = open_decode_worker(self._model)
        return {label: scorer.info() for label, scorer in self._scorers.items()}

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
    ) -> tuple[list[ItemResult], float]:
        """Return results and seconds; the frames are read where they lie, without a copy."""
        return timed_score(self._scorers[label], items, frames, fps)

    @ray.method(concurrency_group="control")
    def connect(self, label: str, endpoints: Sequence[Endpoint]) -> None:
        """Runs beside `score`: a call that waits for a dead server must learn of its successor."""
        self._scorers[label].connect(endpoints)
