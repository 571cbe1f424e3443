"""Prompts in, rewrites out: the template, the sampler and the reading of answers put together.

Called by the phase `prompt_enhancement` to train, which needs groups of rewrites with their tokens,
and by whoever uses a trained rewriter, who needs one good prompt each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlvid.config.enhancement import LengthConfig, RewriterConfig
from rlvid.enhancement.answer import Answer, Enhanced, parse_answer, with_enhancement
from rlvid.enhancement.language_model import LanguageModel
from rlvid.enhancement.sampling import (
    AnswerSampler,
    SampledAnswer,
    SampleRequest,
    TransformersSampler,
)
from rlvid.enhancement.template import RewriterTemplate, load_template, request_tokens
from rlvid.records import Prompt
from rlvid.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """One answer of the rewriter to one prompt."""

    text: str
    """What the template began and the model went on with, without its end token."""
    answer: Answer
    sampled: SampledAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class EnhancedPrompts:
    """Prompts for use, and how many of them the rewriter let down."""

    prompts: tuple[Prompt, ...]
    """Those that it failed on come back as they were, with no enhanced text."""
    failures: dict[str, int]
    """Name of a `Failure` to the number of prompts."""


class Rewriter:
    """Asks a language model for rewrites."""

    def __init__(
        self,
        tokenizer: Any,
        sampler: AnswerSampler,
        template: RewriterTemplate,
        config: RewriterConfig,
        length: LengthConfig,
        *,
        allows_unchanged: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._sampler = sampler
        self._template = template
        self._config = config
        self._length = length
        self._allows_unchanged = allows_unchanged

    def rewrite(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[Sequence[int]],
        *,
        temperature: float | None = None,
    ) -> list[list[Rewrite]]:
        """Return rewrites [P][G] of the user's texts [P], one for each of the seeds [P][G].

        Args:
            temperature: None is that of training.
        """
        requests: list[SampleRequest] = []
        for prompt, group in zip(prompts, seeds, strict=True):
            tokens = request_tokens(self._tokenizer, self._template, prompt.text, self._length)
            requests += [SampleRequest(prompt_ids=tokens, seed=seed) for seed in group]
        sampled = iter(
            self._sampler.sample(
                requests,
                temperature=temperature or self._config.temperature,
                max_new_tokens=self._config.max_new_tokens,
            )
        )
        return [
            [self._read(prompt, next(sampled)) for _ in group]
            for prompt, group in zip(prompts, seeds, strict=True)
        ]

    def enhance(self, prompts: Sequence[Prompt], *, seed: int) -> EnhancedPrompts:
        """Return each prompt with one rewrite of it, for use and not for training."""
        seeds = [[rewrite_seed(seed, prompt.prompt_id, 0, 0)] for prompt in prompts]
        rewrites = self.rewrite(prompts, seeds, temperature=self._config.use_temperature)
        failures: Counter[str] = Counter()
        enhanced: list[Prompt] = []
        for prompt, (rewrite,) in zip(prompts, rewrites, strict=True):
            if isinstance(rewrite.answer, Enhanced):
                enhanced.append(with_enhancement(prompt, rewrite.answer))
            else:
                failures[rewrite.answer.failure.value] += 1
                enhanced.append(prompt)
        return EnhancedPrompts(prompts=tuple(enhanced), failures=dict(failures))

    def _read(self, prompt: Prompt, sampled: SampledAnswer) -> Rewrite:
        tokens = sampled.answer_ids[:-1] if sampled.is_finished else sampled.answer_ids
        # Special tokens stay in: one in the middle of a prompt must be seen, not slip away.
        written = str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))
        text = self._template.answer_start + written
        original = None if self._allows_unchanged else prompt.text
        answer = parse_answer(text, original=original, is_finished=sampled.is_finished)
        return Rewrite(text=text, answer=answer, sampled=sampled)


def rewrite_seed(recipe_seed: int, prompt_id: str, visit: int, index: int) -> int:
    """Return the seed of rewrite `index` of a prompt at its `visit`."""
    return derive_seed(recipe_seed, "rewrite", prompt_id, visit, index)


def open_rewriter(
    language: LanguageModel,
    config: RewriterConfig,
    length: LengthConfig,
    *,
    allows_unchanged: bool = False,
) -> Rewriter:
    """Return a rewriter that samples in this process, with the template of the section."""
    sampler = TransformersSampler(
        language.model,
        end_ids=language.end_ids,
        pad_id=language.pad_id,
        batch_size=config.batch_size,
    )
    return Rewriter(
        language.tokenizer,
        sampler,
        load_template(config.template),
        config,
        length,
        allows_unchanged=allows_unchanged,
    )
