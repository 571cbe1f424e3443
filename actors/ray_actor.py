"""A RolloutWorker in a process of its own; adds nothing but the process."""

from __future__ import annotations

import os
from typing import Any

import ray
from torch import Tensor

from rlvid.actors.rollout_worker import RolloutWorker, open_rollout_worker
from rlvid.config import LearnerConfig, ModelConfig
from rlvid.models.policy import Policy
from rlvid.records import (
    GroupSummary,
    GroupTask,
    RolloutGroup,
    WeightsManifest,
    WeightsReceipt,
)


@ray.remote(max_restarts=0, max_task_retries=0)
class RolloutActor:
    """See RolloutWorker; arguments that are object references arrive resolved."""

    def __init__(
        self,
        policy: Policy,
        model_config: ModelConfig,
        learner_config: LearnerConfig | None,
        actor_id: str,
        num_threads: int,
    ) -> None:
        self._config = (policy, model_config, learner_config)
        self._actor_id = actor_id
        self._num_threads = num_threads

    def open(self) -> int:
        """Load the policy; not in __init__, whose errors Ray wraps beyond reading."""
        self._worker: RolloutWorker = open_rollout_worker(
            *self._config, actor_id=self._actor_id, num_threads=self._num_threads
        )
        return os.getpid()

    @ray.method(num_returns=2)
    def sample(self, task: GroupTask) -> tuple[RolloutGroup, GroupSummary]:
        """The group stays in the object store; the driver fetches the summary only."""
        group = self._worker.sample(task)
        return group, group.summary()

    def fetch_weights(self, manifest: WeightsManifest, *buckets: Any) -> WeightsReceipt:
        return self._worker.fetch_weights(manifest, buckets)

    def use_policy(self, policy: Policy) -> None:
        self._worker.use_policy(policy)

    def canary(self, latents: Tensor, sigma: Tensor, text: str) -> Tensor:
        return self._worker.canary(latents, sigma, text)
