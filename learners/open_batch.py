"""A batch on its way through the learner, chunk by chunk, up to its optimiser step.

Letters: P groups planned for the batch, G rollouts in a group. A group's row is its place in the
batch, 0 to P-1; rank row % R of R trains it, and a turn is the R rows that the ranks take together
(ranks that share the tokens of a clip are one here).
All of it follows from the row, so neither the cut into chunks nor the order in which groups became
ready moves a bit of the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from rlvid.algorithms.base import Credit
from rlvid.algorithms.forward_batch import ForwardBatch
from rlvid.algorithms.refl_batch import ReflBatch
from rlvid.config.algorithm import AlgorithmConfig
from rlvid.learners.report import UpdateTotals
from rlvid.records import LearnerBatch, StepPlan

Batch = TypeVar("Batch", LearnerBatch, ForwardBatch, ReflBatch)


@dataclass(slots=True, kw_only=True)
class MicroBatch(Generic[Batch]):
    """One forward and the rows it serves."""

    batch: Batch
    is_fresh: bool
    """Sampled by the version held now: its ratio must be 1 before the first update."""
    num_forwards: int
    """Latents handed to the model."""

    def emptied(self) -> MicroBatch[Batch]:
        """Return it with nothing to train: a forward and backward pass that add exactly 0."""
        nothing = torch.zeros_like(self.batch.trained)
        return replace(self, batch=replace(self.batch, trained=nothing), is_fresh=False)


@dataclass(slots=True, kw_only=True)
class OpenBatch:
    """What is known of a batch whose optimiser step is still to come."""

    step: int
    num_groups: int
    """P."""
    plans: Sequence[StepPlan]
    """[P]."""
    step_weights: Sequence[Tensor]
    """[P] of [S], normalised over all planned groups; () where no denoising steps are trained."""
    nominal_rows: float
    """Trained rows over all ranks if no group is dropped and no score is missing."""
    keeps: bool
    """Later updates go over the micro-batches again."""
    next_row: int = 0
    """Rows before it were handed in, or never will be."""
    num_chunks: int = 0
    trained_ids: list[str] = field(default_factory=list)
    dropped_ids: list[str] = field(default_factory=list)
    credits: list[Credit] = field(default_factory=list)
    num_rows: int = 0
    """Trained rows of this rank so far."""
    micro_batches: list[MicroBatch[Any]] = field(default_factory=list)
    """Of this rank, padding included; only where later updates need them."""
    spare: MicroBatch[Any] | None = None
    """Trains nothing; closes the batch where its last chunk has nothing to train."""
    totals: UpdateTotals = field(default_factory=UpdateTotals)
    drift: float = 0.0

    def check_place(self, first_row: int, rows: Sequence[int], num_ranks: int) -> None:
        """Raise ValueError unless a chunk of these rows may come next."""
        where = f"learner: chunk of step {self.step} at row {first_row}"
        if first_row < self.next_row or first_row % num_ranks:
            raise ValueError(
                f"{where}: expected a multiple of the {num_ranks} ranks from {self.next_row} on"
            )
        if list(rows) != sorted(set(rows)) or not all(
            first_row <= row < self.num_groups for row in rows
        ):
            raise ValueError(
                f"{where}: expected ascending rows from {first_row} to {self.num_groups - 1}, "
                f"got {list(rows)}"
            )


def planned_rollouts(algorithm: AlgorithmConfig, group_size: int) -> int:
    """Return how many rollouts of a group are trained if no score is missing."""
    best_of_n = algorithm.advantage.best_of_n
    return group_size if best_of_n is None else min(group_size, best_of_n)


def joined(credits: Sequence[Credit]) -> Credit:
    """Return the credit of all chunks; rows of `dropped` are of no use then and left out."""
    return Credit(
        advantage=torch.cat([credit.advantage for credit in credits]),
        reward=torch.cat([credit.reward for credit in credits]),
        trained=torch.cat([credit.trained for credit in credits]),
        dropped=(),
    )
