"""A virtual learner: does what it is asked in order, and may lose a rank while it does."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from rlvid.algorithms.score_table import RewardTable
from rlvid.launch.loop.ports import Published
from rlvid.launch.loop.schedule import Chunk
from rlvid.launch.simulate.clock import VirtualClock
from rlvid.launch.simulate.costs import CostModel
from rlvid.launch.simulate.failures import Injector
from rlvid.launch.simulate.tally import Tally
from rlvid.records import StepReport, WeightsManifest

T = TypeVar("T")


class VirtualLearnerLostError(RuntimeError):
    """A rank of the virtual learner died."""


@dataclass(slots=True)
class VirtualCall(Generic[T]):
    """An answer that is there at a known time."""

    learner: VirtualLearner
    due_s: float
    answer: Callable[[], T]

    def poll(self) -> bool:
        """Return whether it is there.

        Raises:
            VirtualLearnerLostError: a rank died before.
        """
        return self.learner.is_done(self.due_s)

    def result(self) -> T:
        return self.answer()


@dataclass(slots=True)
class VirtualLearner:
    """The loop's `Learner` in virtual time."""

    clock: VirtualClock
    costs: CostModel
    injector: Injector
    tally: Tally
    source: random.Random
    incarnation: int
    version: int
    """Of the checkpoint it starts from."""
    uniform_frac: float = 0.0
    """Share of groups whose rewards have no spread; they are dropped."""
    on_consume: Callable[[int, tuple[str, ...]], None] = lambda step, group_ids: None
    starts_s: float = 0.0
    """Seconds until it has loaded."""
    _free_s: float = 0.0
    _lost_s: float = float("inf")
    _batch: list[str] = field(default_factory=list)
    _step: int = -1
    """Of the batch it was given chunks of last."""

    def __post_init__(self) -> None:
        self._free_s = self.clock.now() + self.starts_s
        self._ring(self._free_s)

    def begin_chunk(
        self, groups: Mapping[str, Any], rewards: RewardTable, chunk: Chunk
    ) -> VirtualCall[StepReport | None]:
        """Add a chunk; checks that chunks come in order and are of one batch.

        Raises:
            RuntimeError: the loop broke its promise.
        """
        if chunk.step != self.version:
            raise RuntimeError(f"chunk of step {chunk.step}: the learner stands at {self.version}")
        if not set(groups) <= set(chunk.group_ids) or tuple(groups) != rewards.group_ids:
            raise RuntimeError(f"chunk {chunk}: got groups {list(groups)}")
        if chunk.first and self._step != chunk.step:
            raise RuntimeError(f"chunk {chunk}: the learner was told to give up this batch")
        self._step = chunk.step
        self._batch += groups
        seconds = sum(self.costs.train_s.draw(self.source) for _ in groups)
        if not chunk.is_last:
            return VirtualCall(self, self._work(seconds, is_training=True), lambda: None)
        seconds += self.costs.update_s.draw(self.source)
        if self.injector.strikes("learner_lost"):
            begins = max(self._free_s, self.clock.now())
            self._lost_s = begins + seconds * self.source.random()
        report = self._report(chunk.step)
        self.version += 1
        due_s = self._work(seconds, is_training=True)
        return VirtualCall(self, due_s, lambda: self._give(report))

    def begin_publish(self, version: int) -> VirtualCall[Published]:
        if version != self.version:
            raise RuntimeError(f"publish {version}: the learner stands at {self.version}")
        manifest = WeightsManifest(
            incarnation=self.incarnation,
            version=version,
            parent_version=version - 1,
            kind="lora",
            base_digest="",
            tensors=(),
            buckets=(),
            num_bound=0,
            canary_tolerance=0.0,
            digest=f"{self.incarnation}-{version}",
        )
        due_s = self._work(self.costs.gather_s.draw(self.source))
        return VirtualCall(self, due_s, lambda: (manifest, None))

    def abandon(self) -> None:
        """Forget the chunks of a batch that will not be completed."""
        self._batch.clear()
        self._step = -1

    def begin_checkpoint(self, step: int, seconds: float) -> VirtualCall[None]:
        """Rest while a checkpoint is written.

        Raises:
            RuntimeError: what it holds is not what the loop says it writes.
        """
        if step != self.version or self._batch:
            raise RuntimeError(
                f"checkpoint {step}: the learner stands at {self.version} with {self._batch}"
            )
        return VirtualCall(self, self._work(seconds), lambda: None)

    def is_done(self, due_s: float) -> bool:
        now = self.clock.now()
        if now >= self._lost_s and due_s > self._lost_s:
            raise VirtualLearnerLostError(f"a learner rank died at {self._lost_s:.3f} s")
        return now >= due_s

    def _work(self, seconds: float, *, is_training: bool = False) -> float:
        """Queue work; return when it is done."""
        self._free_s = max(self._free_s, self.clock.now()) + seconds
        self._ring(self._free_s)
        due_s = self._free_s

        def done() -> None:
            if due_s > self._lost_s:
                return
            self.clock.progress()
            if is_training:
                self.tally.learning_s += seconds
            else:
                self.tally.publishing_s += seconds

        self.clock.at(due_s, done)
        return due_s

    def _ring(self, at_s: float) -> None:
        """Have the loop turn when work is done, or when the rank dies before."""
        self.clock.at(min(at_s, max(self._lost_s, self.clock.now())), lambda: None)

    def _report(self, step: int) -> StepReport:
        batch, self._batch = tuple(self._batch), []
        dropped = tuple(
            group_id
            for group_id in batch
            if self.uniform_frac and self.source.random() < self.uniform_frac
        )
        trained = tuple(group_id for group_id in batch if group_id not in set(dropped))
        return StepReport(
            step=step, metrics={}, trained_group_ids=trained, dropped_group_ids=dropped
        )

    def _give(self, report: StepReport) -> StepReport:
        self.on_consume(report.step, tuple(report.trained_group_ids))
        return report
