"""A RewardWorker in a process of its own; adds nothing but the process."""

from __future__ import annotations

import os

import ray
from torch import Tensor

from rlvid.config.model import ModelConfig
from rlvid.config.rewards import RewardsConfig
from rlvid.records import RolloutGroup
from rlvid.rewards.scoring import GroupScores, open_reward_worker


@ray.remote(max_restarts=0, max_task_retries=0)
class RewardActor:
    """See RewardWorker; a group given as an object reference arrives resolved."""

    def __init__(self, rewards: RewardsConfig, model: ModelConfig, num_threads: int) -> None:
        self._config = (rewards, model)
        self._num_threads = num_threads

    def open(self) -> int:
        """Load scorers and decoder; not in __init__, whose errors Ray wraps beyond reading."""
        import cv2
        import torch

        torch.set_num_threads(self._num_threads)
        cv2.setNumThreads(self._num_threads)  # it has threads of its own, deaf to OMP_NUM_THREADS
        self._worker = open_reward_worker(*self._config)
        return os.getpid()

    def score_group(self, group: RolloutGroup) -> GroupScores:
        return self._worker.score_group(group)

    def clips(self, group: RolloutGroup) -> Tensor:
        """Clips of a group as [G, T, 3, H, W] uint8, for reports."""
        return self._worker.clips(group)
