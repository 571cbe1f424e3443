"""Workers for tests of the rollout pool, named in `rollout.worker`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlvid.actors.rollout_worker import RolloutWorker
from rlvid.config import LearnerConfig, ModelConfig, WeightsConfig
from rlvid.models.policy import Policy
from rlvid.records import WeightsManifest, WeightsReceipt
from rlvid.testing import tiny_model
from rlvid.weights import Bucket, WeightsPart

CLIP = ModelConfig(num_frames=5, height=16, width=16)


class LossyWorker(RolloutWorker):
    """A real worker to which the first `num_damaged` publishes come with a flipped bit."""

    num_damaged = 0

    def stage(
        self, manifest: WeightsManifest, parts: Sequence[Bucket | WeightsPart]
    ) -> WeightsReceipt:
        if self.num_damaged:
            self.num_damaged -= 1
            first: Any = parts[0]
            flipped = first.copy()
            flipped[0] ^= 1
            parts = [flipped, *parts[1:]]
        return super().stage(manifest, parts)


def open_lossy_worker(
    policy: Policy,
    model_config: ModelConfig,
    learner_config: LearnerConfig | None,
    *,
    actor_id: str,
    num_threads: int,
    weights_config: WeightsConfig | None,
    options: Mapping[str, Any] | None,
) -> LossyWorker:
    """Open one on the tiny model of seed 0."""
    worker = LossyWorker(tiny_model(0), CLIP, actor_id=actor_id, mode="full")
    worker.num_damaged = (options or {}).get("num_damaged", 0)
    return worker
