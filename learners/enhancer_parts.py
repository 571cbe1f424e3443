"""Micro-batches of answers on one rank, scored by the policy or by its reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlvid.algorithms.token_grpo import TokenBatch
from rlvid.enhancement.scoring import (
    chunk_of,
    on_device,
    sequence_log_prob,
    with_reference,
    without_padding,
)
from rlvid.learners.rows import split_rows
from rlvid.learners.zero_engine import ZeroEngine
from rlvid.models.lora import adapter_disabled


@dataclass(slots=True)
class Part:
    """A micro-batch of this rank, kept over the updates of a step."""

    batch: TokenBatch
    is_scored: bool = False
    """Whether `behaviour_log_prob` is the policy's before the first update."""


class AnswerScorer:
    """Cuts batches into parts and scores them on a rank's engine."""

    def __init__(
        self,
        engine: ZeroEngine,
        reference: Any | None,
        *,
        temperature: float,
        micro_batch_rows: int,
        has_kl: bool,
    ) -> None:
        """`reference` is a frozen copy of the model; None where it is the model without adapter."""
        self._engine = engine
        self._reference = reference
        self._temperature = temperature
        self._micro_batch_rows = micro_batch_rows
        self._has_kl = has_kl

    def parts(self, batch: TokenBatch) -> Iterator[Part]:
        """Yield this rank's micro-batches; what fills them up is not trained."""
        rows = range(batch.input_ids.shape[0])
        for mine, counted in split_rows(rows, self._engine.ranks, self._micro_batch_rows):
            chunk = chunk_of(batch, mine)
            chunk = replace(chunk, trained=chunk.trained & counted.bool())
            yield Part(on_device(without_padding(chunk), self._engine.device))

    def with_reference(self, part: Part) -> Part:
        """Score a part by the rewriter before training, where a KL is wanted."""
        if not self._has_kl:
            return part
        with self._reference_model() as model:
            return Part(with_reference(model, part.batch, temperature=self._temperature))

    @contextmanager
    def _reference_model(self) -> Iterator[Any]:
        if self._reference is not None:
            yield self._reference
            return
        with adapter_disabled(self._engine.transformer):
            yield self._engine.transformer

    def score(self, part: Part) -> Tensor:
        """Return the policy's log-probabilities [n, T] with gradient; the first are the behaviour.

        So the ratio of the first update is exactly 1, and the behaviour costs no forward.
        """
        policy = sequence_log_prob(self._engine.module, part.batch, temperature=self._temperature)
        if not part.is_scored:
            behaviour = torch.where(part.batch.answer_mask, policy.detach(), 0.0)
            part.batch = replace(part.batch, behaviour_log_prob=behaviour)
            part.is_scored = True
        return policy
