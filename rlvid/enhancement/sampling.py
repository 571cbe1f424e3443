"""Answers drawn from a language model, with the log-probability of each of their tokens.

`AnswerSampler` is what the phase knows; `TransformersSampler` is one, and a vLLM server behind
`launch.enhancement.served_sampler` another: it takes tokens and a seed for each request and gives
tokens and log-probabilities back.
Letters: N requests, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rlvid.algorithms.token_grpo import token_log_prob


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One answer to draw."""

    prompt_ids: tuple[int, ...]
    seed: int
    """Of this answer alone; what else is drawn beside it does not matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledAnswer:
    """An answer as tokens."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    """Its end token included, where it has one: when to stop is learned too."""
    log_prob: tuple[float, ...]
    """Of each of `answer_ids`, at the temperature it was drawn with, in nats."""
    is_finished: bool
    """Whether it ends with an end token, and was not cut off."""


class AnswerSampler(Protocol):
    """Draws answers from softmax(logits / temperature): no top-k, no top-p, no penalties, since the
    log-probability would be of another distribution than the learner's."""

    def sample(
        self, requests: Sequence[SampleRequest], *, temperature: float, max_new_tokens: int
    ) -> list[SampledAnswer]:
        """Return one answer a request, in order; the same request gives the same answer."""
        ...


class TransformersSampler:
    """Draws by `generate` of a causal language model of transformers, in this process."""

    def __init__(self, model: Any, *, end_ids: Sequence[int], pad_id: int, batch_size: int) -> None:
        self._model = model
        self._end_ids = frozenset(end_ids)
        self._pad_id = pad_id
        self._batch_size = batch_size

    @torch.no_grad()
    def sample(
        self, requests: Sequence[SampleRequest], *, temperature: float, max_new_tokens: int
    ) -> list[SampledAnswer]:
        answers: list[SampledAnswer] = []
        with _sampling_state(self._model, sorted(self._end_ids), self._pad_id):
            for start in range(0, len(requests), self._batch_size):
                batch = requests[start : start + self._batch_size]
                answers += self._sample_batch(batch, temperature, max_new_tokens)
        return answers

    def _sample_batch(
        self, requests: Sequence[SampleRequest], temperature: float, max_new_tokens: int
    ) -> list[SampledAnswer]:
        from transformers import LogitsProcessorList

        width = max(len(request.prompt_ids) for request in requests)
        padding = [width - len(request.prompt_ids) for request in requests]
        input_ids = torch.tensor(
            [
                [self._pad_id] * p + list(r.prompt_ids)
                for p, r in zip(padding, requests, strict=True)
            ]
        )
        attention_mask = torch.tensor([[0] * p + [1] * (width - p) for p in padding])
        draw = _SeededDraw([request.seed for request in requests], temperature)
        sequences = self._model.generate(
            input_ids=input_ids.to(self._model.device),
            attention_mask=attention_mask.to(self._model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            logits_processor=LogitsProcessorList([draw]),
        )
        new_ids = sequences[:, width:].tolist()
        rows = zip(requests, new_ids, draw.rows(), strict=True)
        return [self._answer(request, ids, drawn) for request, ids, drawn in rows]

    def _answer(
        self, request: SampleRequest, ids: list[int], drawn: list[tuple[int, float]]
    ) -> SampledAnswer:
        ends = [place for place, token in enumerate(ids) if token in self._end_ids]
        length = ends[0] + 1 if ends else len(ids)
        assert [token for token, _ in drawn[:length]] == ids[:length], (
            "generate took another token than the one that was drawn"
        )
        return SampledAnswer(
            prompt_ids=request.prompt_ids,
            answer_ids=tuple(ids[:length]),
            log_prob=tuple(log_prob for _, log_prob in drawn[:length]),
            is_finished=bool(ends),
        )


class _SeededDraw:
    """A logits processor that draws by itself, and leaves `generate` only the drawn token to take.

    `generate` draws a whole batch from one global generator, so an answer would depend on what is
    drawn beside it. Here each row has a generator of its own, and takes argmax(log p - log E) with
    E exponential, which is distributed as p (the Gumbel-max trick). It draws on the CPU, so a seed
    means the same on every device.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature
        self._tokens: list[Tensor] = []
        self._log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[N, V] logits -> 0 at the drawn token and -inf elsewhere."""
        noise = torch.empty(scores.shape, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        keys = scores.float() / self._temperature - noise.log().to(scores.device)
        drawn = keys.argmax(dim=-1)
        self._tokens.append(drawn.cpu())
        log_prob = token_log_prob(scores, drawn, temperature=self._temperature)
        self._log_probs.append(log_prob.cpu())
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn[:, None], 0.0)

    def rows(self) -> list[list[tuple[int, float]]]:
        """Return the drawn tokens with their log-probabilities, a list a row."""
        tokens = torch.stack(self._tokens, dim=1).tolist()
        log_probs = torch.stack(self._log_probs, dim=1).tolist()
        return [list(zip(*row, strict=True)) for row in zip(tokens, log_probs, strict=True)]


@contextmanager
def _sampling_state(model: Any, end_ids: list[int], pad_id: int) -> Iterator[None]:
    """Take dropout and the model's own generation settings out, and put them back.

    `generate` fills every setting that it is not given from `model.generation_config`; Qwen's, for
    one, has a repetition penalty, whose distribution is not the one the learner scores.
    """
    from transformers import GenerationConfig

    settings, was_training = model.generation_config, model.training
    model.generation_config = GenerationConfig(eos_token_id=end_ids, pad_token_id=pad_id)
    model.eval()
    try:
        yield
    finally:
        model.generation_config = settings
        model.train(was_training)
