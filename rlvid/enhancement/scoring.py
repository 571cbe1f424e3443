"""Answers scored again: one forward for behaviour, policy and reference.

Before the first update the learner scores a batch as it will at the update, in the same layout, and
takes that for the behaviour: then the ratio is exactly 1, whatever a sampler with a cache, another
batch or another machine had rounded. What the sampler recorded is kept to compare with.
Letters: N answers, T+1 tokens of the longest sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from rlvid.algorithms.token_grpo import TokenBatch, token_log_prob, token_weights
from rlvid.config.enhancement import TokenGrpoConfig
from rlvid.enhancement.sampling import SampledAnswer


def collate(
    answers: Sequence[SampledAnswer],
    *,
    group_index: Sequence[int],
    advantage: Tensor,
    trained: Tensor,
    config: TokenGrpoConfig,
    max_new_tokens: int,
    pad_id: int,
) -> TokenBatch:
    """Return the answers of whole groups as one batch, with the sampler's log-probabilities.

    Args:
        group_index: [N] which answers are to one prompt.
        advantage, trained: [N].
    """
    width = max(len(answer.prompt_ids) + len(answer.answer_ids) for answer in answers)
    input_ids = torch.full((len(answers), width), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    answer_mask = torch.zeros(len(answers), width - 1, dtype=torch.bool)
    log_prob = torch.zeros(len(answers), width - 1)
    for row, answer in enumerate(answers):
        tokens = answer.prompt_ids + answer.answer_ids
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        attention_mask[row, : len(tokens)] = 1
        # The token at place t+1 is predicted at t.
        places = slice(len(answer.prompt_ids) - 1, len(tokens) - 1)
        answer_mask[row, places] = True
        log_prob[row, places] = torch.tensor(answer.log_prob)
    weight = token_weights(
        answer_mask,
        trained,
        group_index,
        aggregation=config.aggregation,
        max_tokens=max_new_tokens,
    )
    return TokenBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        answer_mask=answer_mask,
        behaviour_log_prob=log_prob,
        advantage=advantage,
        trained=trained,
        token_weight=weight,
    )


def chunk_of(batch: TokenBatch, rows: slice | Sequence[int]) -> TokenBatch:
    """Return some rows of a batch; their weights stay those of the whole groups."""
    chosen = rows if isinstance(rows, slice) else list(rows)
    return _of_each(batch, lambda values: values[chosen])


def without_padding(batch: TokenBatch) -> TokenBatch:
    """Return the batch as wide as its longest row, so that nothing is forwarded in vain."""
    width = int(batch.attention_mask.sum(dim=1).max())

    def cut(values: Tensor) -> Tensor:
        # Of a sequence of T+1 tokens T are predicted.
        over = batch.input_ids.shape[1] - width
        return values[:, : values.shape[1] - over] if values.dim() == 2 else values

    return _of_each(batch, cut)


def on_device(batch: TokenBatch, device: torch.device | str) -> TokenBatch:
    """Return the batch where the model is."""
    return _of_each(batch, lambda values: values.to(device))


def _of_each(batch: TokenBatch, change: Callable[[Tensor], Tensor]) -> TokenBatch:
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{k: change(v) for k, v in tensors.items() if v is not None})


def sequence_log_prob(model: Any, batch: TokenBatch, *, temperature: float) -> Tensor:
    """Return the log-probability of every token after the first, [N, T] float32, with gradient.

    Padding lies on the right, where a causal model does not look, so positions need no correction
    and any causal model will do. The model must be without dropout, else no ratio is 1.

    Args:
        model: causal language model of transformers, on the batch's device; [N, T+1] -> logits
            [N, T+1, V].
    """
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    return token_log_prob(output.logits[:, :-1], batch.input_ids[:, 1:], temperature=temperature)


@torch.no_grad()
def with_behaviour(model: Any, batch: TokenBatch, *, temperature: float) -> TokenBatch:
    """Return the batch with the behaviour scored by the policy before its first update."""
    scored = sequence_log_prob(model, batch, temperature=temperature)
    return replace(batch, behaviour_log_prob=torch.where(batch.answer_mask, scored, 0.0))


@torch.no_grad()
def with_reference(model: Any, batch: TokenBatch, *, temperature: float) -> TokenBatch:
    """Return the batch with the log-probabilities of the rewriter before training."""
    scored = sequence_log_prob(model, batch, temperature=temperature)
    return replace(batch, reference_log_prob=torch.where(batch.answer_mask, scored, 0.0))


def sampling_drift(sampled: TokenBatch, scored: TokenBatch) -> float:
    """Return the largest difference of any token's log-probability between two scorings, in nats.

    Between the sampler's and the learner's it must lie far below the clip range; where it does not,
    the sampler has other weights, or another distribution.
    """
    difference = sampled.behaviour_log_prob - scored.behaviour_log_prob
    return float(torch.where(sampled.answer_mask, difference.abs(), 0.0).max())
