"""One learner rank in a process of its own; adds nothing but the process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from torch import Tensor

from rlvid.algorithms.score_table import RewardTable
from rlvid.learners.rl import RlLearner, RlSettings
from rlvid.learners.sft import SftLearner, SftSettings
from rlvid.records import RolloutGroup, StepReport, WeightsManifest


class FetchedGroups(Mapping[str, RolloutGroup]):
    """Group id to group; fetched from the object store when looked up, so a rank reads its share.

    References stay the driver's: a rank that dies takes no group with it.
    """

    def __init__(self, references: Mapping[str, Any], deadline_s: float) -> None:
        self._references = references
        self._deadline_s = deadline_s

    def __getitem__(self, group_id: str) -> RolloutGroup:
        group: RolloutGroup = ray.get(self._references[group_id], timeout=self._deadline_s)
        return group

    def __iter__(self) -> Iterator[str]:
        return iter(self._references)

    def __len__(self) -> int:
        return len(self._references)


@ray.remote(max_restarts=0, max_task_retries=0)
class LearnerActor:
    """See RlLearner and SftLearner."""

    def __init__(self, settings: RlSettings | SftSettings) -> None:
        self._settings = settings

    def endpoint(self) -> tuple[str, int]:
        """Return an address of this node and a free port, for the ranks to meet at."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            return ray.util.get_node_ip_address(), int(listener.getsockname()[1])

    def open(self, endpoint: tuple[str, int]) -> int:
        """Meet the other ranks and load the policy; not in __init__, whose errors Ray wraps."""
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = endpoint[0], str(endpoint[1])
        self._learner: Any = (
            RlLearner(self._settings)
            if isinstance(self._settings, RlSettings)
            else SftLearner(self._settings)
        )
        return os.getpid()

    def train(self, references: Mapping[str, Any], rewards: RewardTable, step: int) -> StepReport:
        deadline_s = self._settings.trainee.learner.deadline_s
        report: StepReport = self._learner.train(
            FetchedGroups(references, deadline_s), rewards, step=step
        )
        return report

    def train_steps(self, first: int, last: int) -> list[StepReport]:
        reports: list[StepReport] = self._learner.train_steps(first, last)
        return reports

    def publish(self, version: int, incarnation: int, use_ema: bool) -> WeightsManifest:
        """Snapshot the weights; each rank holds its buckets until they are fetched one by one."""
        manifest: WeightsManifest = self._learner.publish(
            version, incarnation=incarnation, use_ema=use_ema
        )[0]
        return manifest

    def bucket(self, index: int) -> Any:
        """Return one bucket; as a return value it belongs to the driver and outlives this rank."""
        return self._learner.trainee.publisher.bucket(index)

    def release_buckets(self) -> None:
        self._learner.trainee.publisher.release()

    def save(self, folder: Path) -> None:
        self._learner.save(folder)

    def load(self, folder: Path) -> None:
        self._learner.load(folder)

    def export(self, folder: Path) -> None:
        self._learner.trainee.export(folder)

    def canary(self, text: str) -> tuple[Tensor, Tensor, Tensor]:
        answer: tuple[Tensor, Tensor, Tensor] = self._learner.trainee.canary(text)
        return answer
