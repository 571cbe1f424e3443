"""What an algorithm is: pure functions, credit and loss above all, and the records they return.

There are two kinds. An `Algorithm` trains the denoising steps that a rollout took; a
`ForwardAlgorithm` looks at final videos alone, noises them again, and compares velocities.

Letters: P groups of a batch, G rollouts in a group, N rows of a learner batch, U forwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rlvid.algorithms.forward_batch import ForwardBatch, Units
from rlvid.algorithms.old_policy import DecayRamp
from rlvid.config.algorithm import AdvantageConfig, AlgorithmConfig
from rlvid.records import LearnerBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """What the scores of a batch of groups say about its rollouts."""

    advantage: Tensor
    """[P, G] float32; exactly 0 where `trained` is False."""
    reward: Tensor
    """[P, G] float32, weighted sum of raw scores for the reader; NaN where a score is missing."""
    trained: Tensor
    """[P, G] bool."""
    dropped: tuple[tuple[int, str], ...]
    """(row of the group, reason) of groups that teach nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCredit:
    """The credit of one group."""

    advantage: Tensor
    """[G]."""
    trained: Tensor
    """[G] bool."""
    pulled: Tensor | None = None
    """[G] bool: rollouts on which the KL acts; None is all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """A loss and its metrics over some rows; terms of disjoint rows add up."""

    loss_sum: Tensor
    """Scalar with a gradient, summed over trained rows. The learner divides by the number of
    trained rows over all ranks, so any layout gives the same gradient."""
    num_rows: int
    """Trained rows in `loss_sum`."""
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    """Metric to its sum over trained rows; divide by the rows of all ranks for the mean."""
    maxima: Mapping[str, Tensor] = field(default_factory=dict)
    """Metric to its largest value over trained rows; -inf without any."""
    minima: Mapping[str, Tensor] = field(default_factory=dict)
    """Metric to its smallest value over trained rows; inf without any."""
    log_ratio: Tensor | None = None
    """[N] of policy to behaviour, detached: the `proximal_log_ratio` of later updates on the same
    rows. None from an algorithm without importance weights."""
    log_prob: Tensor | None = None
    """[N] of the policy, detached: the `ForwardBatch.start_log_prob` of later updates on the same
    rows. None from an algorithm without a ratio."""


@runtime_checkable
class Algorithm(Protocol):
    """Credit and loss of one algorithm; holds no state.

    It may say `is_group_local = True`: then the credit of a group depends on that group's scores
    alone, and the learner takes a batch in chunks as its groups become ready. One that does not say
    is given whole batches.
    """

    def credit(
        self,
        scores: Mapping[str, Tensor],
        weights: Mapping[str, float],
        config: AdvantageConfig,
    ) -> Credit:
        """Scores [P, G] by scorer (NaN where missing) -> advantages."""
        ...

    def loss(
        self,
        batch: LearnerBatch,
        velocity: Tensor,
        *,
        config: AlgorithmConfig,
        reference_velocity: Tensor | None = None,
    ) -> LossTerms:
        """Velocities of `batch` under the policy, [N, ...] or [U, ...] -> loss.

        Under `algorithm.kl.kind` dual it is also given `anchor_velocity`, likewise.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherPolicies:
    """Which policies a `ForwardAlgorithm` compares with, beside the one in training."""

    reference: bool = False
    """The policy before RL."""
    old: DecayRamp | None = None
    """How an average follows the policy; None holds none."""
    samples_with_old: bool = False
    """Whether rollouts are the old policy's; it is then what is published."""


@runtime_checkable
class ForwardAlgorithm(Protocol):
    """Credit and loss of one algorithm on the forward process; holds no state.

    It may say `is_group_local = True`, as an `Algorithm`.
    """

    def credit(
        self,
        scores: Mapping[str, Tensor],
        weights: Mapping[str, float],
        config: AdvantageConfig,
    ) -> Credit:
        """Scores [P, G] by scorer (NaN where missing) -> advantages."""
        ...

    def other_policies(self, config: AlgorithmConfig) -> OtherPolicies:
        """Return what `loss` is to be given."""
        ...

    def units(self, advantage: Tensor, trained: Tensor, config: AlgorithmConfig) -> Units:
        """Return which rollouts of a group share their noise, all units of one length.

        Args:
            advantage, trained: [G]; of a group that credit did not drop, so one unit at least.
        """
        ...

    def loss(
        self,
        batch: ForwardBatch,
        velocity: Tensor,
        *,
        config: AlgorithmConfig,
        old_velocity: Tensor | None = None,
        reference_velocity: Tensor | None = None,
    ) -> LossTerms:
        """Velocities [N, ...] at `batch.latents`, unguided, of the policy and the others -> loss.

        `LossTerms.num_rows` counts what `loss_sum` is a sum over: rows, or pairs.
        """
        ...


def metric_values(terms: Sequence[LossTerms]) -> dict[str, float]:
    """Return the metrics of terms of one process by name: means, maxima and minima.

    Raises:
        ValueError: no trained row in any of them.
    """
    num_rows = sum(term.num_rows for term in terms)
    if num_rows == 0:
        raise ValueError("metric_values: no trained rows: expected at least 1, got 0")
    values: dict[str, float] = {}
    for name in terms[0].sums:
        values[name] = float(torch.stack([term.sums[name] for term in terms]).sum()) / num_rows
    for name in terms[0].maxima:
        values[name] = float(torch.stack([term.maxima[name] for term in terms]).max())
    for name in terms[0].minima:
        values[name] = float(torch.stack([term.minima[name] for term in terms]).min())
    return values
