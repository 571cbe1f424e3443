"""One learner rank in a process of its own; adds nothing but the process."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError
from torch import Tensor

from rlvid import durable
from rlvid.algorithms.score_table import RewardTable
from rlvid.collector import paused_collector
from rlvid.enhancement.adapter import PublishedAdapter
from rlvid.enhancement.rewriter import Rewrite
from rlvid.learners.admission import GroupUnavailableError
from rlvid.learners.checkpoint_manifest import files_of
from rlvid.learners.delivery import RankPublish
from rlvid.learners.distill import DistillSettings
from rlvid.learners.dpo import DpoSettings
from rlvid.learners.enhancer_settings import EnhancerSettings
from rlvid.learners.rl import RlSettings
from rlvid.learners.sft import SftSettings
from rlvid.learners.workers import open_learner
from rlvid.priority import yield_to_starting
from rlvid.records import Prompt, RolloutGroup, StepPlan, StepReport, WeightsManifest
from rlvid.weights import WeightsError
from rlvid.weights.broadcast import BroadcastPart, send_buckets
from rlvid.weights.folder import write_bucket

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkPlace:
    """Which part of which batch a chunk is; see `RlLearner.train_chunk`."""

    step: int
    num_groups: int
    first_row: int
    is_last: bool
    rows: tuple[int, ...] | None
    plans: tuple[StepPlan, ...] | None


class FetchedGroups(Mapping[str, RolloutGroup]):
    """Group id to group; fetched from the object store when looked up, so a rank reads its share.

    References stay the driver's: a rank that dies takes no group with it.
    """

    def __init__(self, references: Mapping[str, Any], deadline_s: float) -> None:
        self._references = references
        self._deadline_s = deadline_s

    def __getitem__(self, group_id: str) -> RolloutGroup:
        try:
            group: RolloutGroup = ray.get(self._references[group_id], timeout=self._deadline_s)
        except (ObjectLostError, GetTimeoutError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise GroupUnavailableError([group_id], f"{type(error).__name__}: {reason}") from error
        return group

    def __iter__(self) -> Iterator[str]:
        return iter(self._references)

    def __len__(self) -> int:
        return len(self._references)


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"progress": 1, "weights": 1})
class LearnerActor:
    """One rank; see RlLearner, SftLearner and EnhancerLearner.

    Calls run one after the other in one thread. Signs of life and the fetching of buckets have
    threads of their own: they are answered while a step runs.
    """

    def __init__(
        self,
        settings: RlSettings | SftSettings | DpoSettings | EnhancerSettings | DistillSettings,
        variables: Mapping[str, str],
    ) -> None:
        """`variables` say which rank this is to torch.distributed and DeepSpeed.

        They read them when they are opened, so the process need not be started with them: that
        would take another Python, see `rlvid.process_env`.
        """
        self._settings = settings
        self._variables = variables
        self._learner: Any = None
        self._held: dict[int, Mapping[int, Any]] = {}
        """Version to this rank's buckets, until they are fetched."""
        self._is_group_broken = False

    def endpoint(self) -> tuple[str, int]:
        """Return an address of this node and a free port, for the ranks to meet at."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            return ray.util.get_node_ip_address(), int(listener.getsockname()[1])

    def open(self, endpoint: tuple[str, int]) -> int:
        """Meet the other ranks and load the policy; not in __init__, whose errors Ray wraps.

        Returns:
            The id of this process.
        """
        os.environ.update(self._variables)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = endpoint[0], str(endpoint[1])
        with paused_collector():
            self._learner = open_learner(self._settings)
        yield_to_starting()
        return os.getpid()

    @ray.method(concurrency_group="progress")
    def progress(self) -> int:
        """Return the micro-batches finished so far."""
        return int(getattr(self._learner, "num_micro_batches", 0))

    def train_chunk(
        self, references: Mapping[str, Any], rewards: RewardTable, place: ChunkPlace
    ) -> StepReport | None:
        deadline_s = self._settings.trainee.learner.deadline_s
        report: StepReport | None = self._learner.train_chunk(
            FetchedGroups(references, deadline_s),
            rewards,
            step=place.step,
            num_groups=place.num_groups,
            first_row=place.first_row,
            is_last=place.is_last,
            rows=place.rows,
            plans=place.plans,
        )
        return report

    def abandon(self) -> None:
        self._learner.abandon()

    def restore_published(self, pairs: Sequence[tuple[int, str]]) -> None:
        self._learner.restore_published(pairs)

    def train_steps(self, first: int, last: int) -> list[StepReport]:
        reports: list[StepReport] = self._learner.train_steps(first, last)
        return reports

    def rewrite(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]
    ) -> list[list[Rewrite]]:
        rewrites: list[list[Rewrite]] = self._learner.rewrite(prompts, seeds)
        return rewrites

    def publish_adapter(self, folder: Path) -> PublishedAdapter:
        published: PublishedAdapter = self._learner.publish_adapter(folder)
        return published

    def learn(
        self,
        rewrites: Sequence[Sequence[Rewrite]],
        advantage: Tensor,
        trained: Tensor,
        step: int,
    ) -> StepReport:
        report: StepReport = self._learner.learn(rewrites, advantage, trained, step=step)
        return report

    def publish(self, version: int, incarnation: int, use_ema: bool) -> RankPublish:
        """Snapshot the weights; each rank holds its buckets until they are fetched one by one."""
        manifest: WeightsManifest
        manifest, buckets = self._learner.publish(version, incarnation=incarnation, use_ema=use_ema)
        self._held[version] = buckets
        return RankPublish(
            manifest=manifest,
            metrics=self._learner.publish_metrics,
            is_group_broken=self._is_group_broken,
        )

    @ray.method(concurrency_group="weights")
    def write_buckets(self, published: RankPublish, temporary: Path) -> RankPublish:
        """Write this rank's buckets into a shared folder; return what it was given."""
        for index, bucket in self._held[published.manifest.version].items():
            write_bucket(temporary, index, bucket)
        return published

    @ray.method(concurrency_group="weights")
    def send_buckets(self, manifest: WeightsManifest, part: BroadcastPart, rank: int) -> None:
        """Broadcast this rank's buckets; where that fails the actors have another way to them."""
        try:
            send_buckets(part, rank, manifest, self._held[manifest.version])
            self._is_group_broken = False
        except WeightsError as error:
            logger.warning("weights version %d: broadcast failed: %s", manifest.version, error)
            self._is_group_broken = True

    @ray.method(concurrency_group="weights")
    def bucket(self, version: int, index: int) -> Any:
        """Return one bucket; as a return value it belongs to the driver and outlives this rank."""
        return self._held[version][index]

    @ray.method(concurrency_group="weights")
    def release_buckets(self, version: int) -> None:
        """Forget the buckets of a publish; their memory is used again."""
        del self._held[version]
        self._learner.release_buckets(version)

    def save(self, folder: Path) -> list[str]:
        """Write this rank's files and return the names of those that it sees.

        They are synced here: on a shared file system the driver's fsync does not flush what another
        machine holds back. What any rank sees the driver must see before it commits.
        """
        self._learner.save(folder)
        durable.sync_tree(folder)
        return [path.relative_to(folder).as_posix() for path in files_of(folder)]

    def load(self, folder: Path) -> None:
        self._learner.load(folder)

    def export(self, folder: Path) -> None:
        self._learner.export(folder)

    def canary(self, text: str) -> tuple[Tensor, Tensor, Tensor]:
        answer: tuple[Tensor, Tensor, Tensor] = self._learner.canary(text)
        return answer
