"""A twin of the RL learner that only takes its time; the same calls, no model, no DeepSpeed.

For simulations, scaling runs and tests of the loop: what is published is one tensor that names its
version, so that receipts and digests are real.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlvid.algorithms.score_table import RewardTable
from rlvid.learners.report import Usage
from rlvid.learners.rl import RlSettings
from rlvid.records import RolloutGroup, StepPlan, StepReport, WeightsManifest
from rlvid.weights import Bucket, TensorSpec, digest_bytes, make_manifest, plan_layout

_STATE_FILE = "learner.json"


class SleepingLearner:
    """Sleeps where RlLearner works; costs are `learner.sleeping`."""

    def __init__(self, settings: RlSettings) -> None:
        self._settings = settings
        self._costs = settings.trainee.learner.sleeping
        self._usage = Usage()
        self._ids: list[str] = []
        self._step: int | None = None
        self._version = -1
        self.num_micro_batches = 0

    def train_chunk(
        self,
        groups: Mapping[str, RolloutGroup],
        rewards: RewardTable,
        *,
        step: int,
        num_groups: int,
        first_row: int,
        is_last: bool,
        rows: Sequence[int] | None = None,
        plans: Sequence[StepPlan] | None = None,
    ) -> StepReport | None:
        """Sleep for a chunk's share of a batch; every group counts as trained."""
        with self._usage.busy():
            if first_row == 0:
                self._step, self._ids = step, []
            if self._step != step:
                raise ValueError(f"learner: chunk of step {step}: the open batch is {self._step}")
            self._ids += rewards.group_ids
            for _ in rewards.group_ids:
                time.sleep(self._costs.train_s / num_groups)
                self.num_micro_batches += 1
            if not is_last:
                return None
            self._step = None
            metrics = {"learner/rows/count": float(len(self._ids)), **self._usage.take()}
            return StepReport(step=step, metrics=metrics, trained_group_ids=tuple(self._ids))

    def abandon(self) -> None:
        self._step, self._ids = None, []

    def publish(
        self, version: int, *, incarnation: int = 0, use_ema: bool = False
    ) -> tuple[WeightsManifest, dict[int, Bucket]]:
        """Sleep, and return a publish of one tensor that holds the version."""
        with self._usage.busy():
            time.sleep(self._costs.publish_s)
        value = torch.tensor([version], dtype=torch.float64)
        spec = TensorSpec(name="version", shape=(1,), dtype=value.dtype)
        bucket = value.view(torch.uint8).numpy()
        manifest = make_manifest(
            plan_layout([spec], bucket_bytes=bucket.size),
            [digest_bytes(bucket)],
            incarnation=incarnation,
            version=version,
            parent_version=version - 1,
            kind=self._settings.trainee.learner.mode,
            base_digest="",
            num_bound=0,
            canary_limit=0.0,
        )
        self._version = version
        return manifest, {0: bucket}

    @property
    def publish_metrics(self) -> dict[str, float]:
        return {}

    def release_buckets(self, version: int) -> None:
        """Every publish has a buffer of its own."""

    def restore_published(self, pairs: Iterable[tuple[int, str]]) -> None:
        """All groups are admitted."""

    def save(self, folder: Path) -> None:
        """Write the version; rank 0 alone."""
        if os.environ.get("RANK", "0") == "0":
            (folder / _STATE_FILE).write_text(f'{{"version": {self._version}}}')

    def load(self, folder: Path) -> None:
        (folder / _STATE_FILE).read_text()

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    def canary(self, text: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return numbers that its sleeping actors answer too: zeros."""
        return torch.zeros(1, 1, 1, 1, 1), torch.zeros(1), torch.zeros(1, 1, 1, 1, 1)
