"""A batch of the RL learner on one rank, from its first chunk to its optimiser steps.

Chunk by chunk: credit, admission, forwards and their gradient; after the last one the updates.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlvid.algorithms.base import LossTerms
from rlvid.algorithms.score_table import RewardTable
from rlvid.config import AlgorithmConfig
from rlvid.learners.chunk import Chunk, ChunkCutter
from rlvid.learners.credit import credit_chunk
from rlvid.learners.data_loss import DataLoss
from rlvid.learners.objective import Objective
from rlvid.learners.open_batch import MicroBatch, OpenBatch, joined
from rlvid.learners.parameter_check import check_same_parameters
from rlvid.learners.published import Published
from rlvid.learners.ranks import Ranks
from rlvid.learners.report import Usage, advantage_metrics, memory_metrics
from rlvid.learners.trainee import Trainee
from rlvid.records import StepPlan, StepReport


class BatchTrainer:
    """Makes the gradient of a batch out of its chunks, and takes its updates."""

    def __init__(
        self,
        trainee: Trainee,
        objective: Objective,
        published: Published,
        config: AlgorithmConfig,
        *,
        data_loss: DataLoss | None,
        check_parameters_every: int,
        usage: Usage,
    ) -> None:
        """Hold what the learner opened.

        Args:
            check_parameters_every: optimiser steps between two comparisons of the ranks; 0 never.
            usage: of the learner, which each report takes.
        """
        self._trainee = trainee
        self._objective = objective
        self._config = config
        self.data_loss = data_loss
        self._check_parameters_every = check_parameters_every
        self._usage = usage
        self._cutter = ChunkCutter(self._ranks, objective, published)
        self._open: OpenBatch | None = None
        self.num_micro_batches = 0
        """Forward and backward passes done; a sign of life for other threads."""

    def train_chunk(
        self,
        chunk: Chunk,
        rewards: RewardTable,
        *,
        step: int,
        num_groups: int,
        first_row: int,
        is_last: bool,
        plans: Sequence[StepPlan] | None,
    ) -> StepReport | None:
        """Add the gradient of a chunk; see `RlLearner.train_chunk`."""
        if first_row == 0:
            self._begin(chunk, step, num_groups, is_last=is_last, plans=plans)
        batch = self._opened(step, num_groups)
        batch.check_place(first_row, tuple(chunk.ids), self._ranks.data_parallel)
        self._add(batch, chunk, rewards, is_last=is_last)
        batch.next_row = max([first_row + 1, *(row + 1 for row in chunk.ids)])
        return self._finish(batch) if is_last else None

    def abandon(self) -> None:
        """Forget a batch that is not trained to its end, gradient and all; no collective."""
        self._open = None
        self._trainee.engine.discard()

    def check_closed(self, doing: str) -> None:
        """Raise ValueError where a batch is open, in whose midst `doing` it makes no sense."""
        if self._open is not None:
            raise ValueError(
                f"learner: {doing}: step {self._open.step} has chunks and no optimiser step yet; "
                "hand in its last chunk, or abandon it"
            )

    @property
    def _ranks(self) -> Ranks:
        return self._trainee.engine.ranks

    def _begin(
        self,
        chunk: Chunk,
        step: int,
        num_groups: int,
        *,
        is_last: bool,
        plans: Sequence[StepPlan] | None,
    ) -> None:
        """Open the batch that a chunk at row 0 starts."""
        self.check_closed(f"step {step}")
        if plans is None:
            if not is_last or len(chunk.ids) != num_groups:
                raise ValueError(
                    f"learner: step {step}: a batch in several chunks needs the plans of all its "
                    f"{num_groups} groups from the first chunk on, got none"
                )
            _, facts = self._cutter.fetch(chunk, chunk.ids)
            plans = [fact.plan for fact in facts]
        if len(plans) != num_groups:
            raise ValueError(
                f"learner: step {step}: expected the plans of {num_groups} groups, got {len(plans)}"
            )
        self._open = self._objective.open(plans, step=step)

    def _opened(self, step: int, num_groups: int) -> OpenBatch:
        if self._open is None or (self._open.step, self._open.num_groups) != (step, num_groups):
            held = "none" if self._open is None else f"step {self._open.step}"
            raise ValueError(
                f"learner: chunk of step {step} with {num_groups} groups: expected it to belong to "
                f"the batch that is open, which is {held}; a batch begins with a chunk at row 0, "
                "and begins again after a chunk that failed"
            )
        return self._open

    def _add(self, batch: OpenBatch, chunk: Chunk, rewards: RewardTable, *, is_last: bool) -> None:
        """Credit the groups of a chunk, admit them, and add their gradient."""
        batch.num_chunks += 1
        kept = credit_chunk(batch, chunk, rewards, self._objective.algorithm, self._config)
        micro_batches = self._cutter.micro_batches(batch, chunk, kept)
        if is_last and not micro_batches and batch.spare is not None:
            micro_batches = [batch.spare]
        self._first_update(batch, micro_batches, is_last=is_last)

    def _first_update(
        self, batch: OpenBatch, micro_batches: Sequence[MicroBatch[Any]], *, is_last: bool
    ) -> None:
        """Add the gradient of a chunk; refuse one whose replay is off."""
        for index, micro_batch in enumerate(micro_batches):
            ends = is_last and index == len(micro_batches) - 1 and self.data_loss is None
            terms = self._backward(batch, micro_batch, is_last=ends)
            batch.num_rows += terms.num_rows
            if micro_batch.is_fresh and terms.num_rows:
                batch.drift = max(batch.drift, float(terms.maxima["ratio_deviation_max"]))
            if batch.keeps:
                batch.micro_batches.append(self._objective.kept(micro_batch, terms))
        self._objective.check_start(batch)

    def _backward(
        self, batch: OpenBatch, micro_batch: MicroBatch[Any], *, is_last: bool
    ) -> LossTerms:
        """Add the gradient of one forward, as a share of the batch's planned rows."""
        started = time.perf_counter()
        terms = self._objective.terms(micro_batch)
        self._trainee.engine.backward(terms.loss_sum / batch.nominal_rows, is_last=is_last)
        batch.totals.add(
            terms,
            forward_rows=micro_batch.num_forwards,
            seconds=time.perf_counter() - started,
        )
        self.num_micro_batches += 1
        return terms

    def _finish(self, batch: OpenBatch) -> StepReport:
        """Take the updates of a batch whose gradient is complete."""
        self._open = None
        report = StepReport(
            step=batch.step,
            metrics={},
            trained_group_ids=tuple(batch.trained_ids),
            dropped_group_ids=tuple(batch.dropped_ids),
        )
        if not batch.trained_ids:
            return replace(report, metrics={"learner/rows/count": 0.0, **self._usage.take()})
        update_rows = self._ranks.sum([float(batch.num_rows)])[0]
        if not update_rows:
            # Groups with a spread may have none among the nodes of a tree.
            self._trainee.engine.discard()
            return replace(
                report,
                metrics={"learner/rows/count": 0.0, **self._usage.take()},
                trained_group_ids=(),
                dropped_group_ids=(*batch.dropped_ids, *batch.trained_ids),
            )
        self._take_updates(batch, divisor=update_rows / batch.nominal_rows)
        return replace(report, metrics=self._metrics(batch, update_rows))

    def _take_updates(self, batch: OpenBatch, *, divisor: float) -> None:
        """Take the step that the gradient is there for, and the later ones on the same rows."""
        self._step(batch, divisor)
        for _ in range(1, self._config.updates_per_batch):
            for index, micro_batch in enumerate(batch.micro_batches):
                is_last = index == len(batch.micro_batches) - 1 and self.data_loss is None
                self._backward(batch, micro_batch, is_last=is_last)
            self._step(batch, divisor)
        self._objective.after_batch(batch.step)

    def _metrics(self, batch: OpenBatch, update_rows: float) -> dict[str, float]:
        """Return the metrics of a trained batch; a collective."""
        metrics = batch.totals.metrics(self._ranks, update_rows=update_rows)
        credit, clip = joined(batch.credits), self._config.advantage.clip
        metrics |= advantage_metrics(credit, clip) | memory_metrics(self._trainee.engine.device)
        metrics["learner/chunks/count"] = float(batch.num_chunks)
        usage = self._usage.take()
        metrics["time/learner_update/seconds"] = usage["time/learner_busy/seconds"]
        return metrics | usage

    def _step(self, batch: OpenBatch, divisor: float) -> None:
        """Take one optimiser step on the gradient that is there and that of the clips beside."""
        trainee = self._trainee
        if self.data_loss is not None:
            batch.totals.data_loss = self.data_loss.add_gradient(divisor)
        batch.totals.learning_rate = trainee.next_learning_rate()
        batch.totals.grad_norm = trainee.step(divisor=divisor)
        self._objective.after_step(trainee.optimizer_steps - 1)
        every = self._check_parameters_every
        if every and trainee.optimizer_steps % every == 0:
            check_same_parameters(trainee.engine, trainee.base_digest)
