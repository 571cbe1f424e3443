"""One rank of prompt enhancement: a language model taught by pairs, then by rewards. A plain class.

    cold start   L = - mean over answers of  1/n sum_t log p(token_t)         train_steps
    GRPO         L = the clipped loss of `rlvid.algorithms.token_grpo`        rewrite, learn

Both are one loss on one engine: a pair is an answer of advantage 1. Whoever calls samples with
`rewrite`, has the rewrites rendered and scored, and hands them back to `learn`; between calls
nothing is held but the weights, so a checkpoint is weights and moments.
Letters: P prompts of a step, G rewrites of a prompt, N = P G answers, T+1 tokens of an answer.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvid.algorithms.base import LossTerms
from rlvid.algorithms.token_grpo import TokenBatch, token_grpo_loss, truncated_importance
from rlvid.data.prompts import seeded_order
from rlvid.enhancement.adapter import PublishedAdapter, publish_adapter
from rlvid.enhancement.cold_start import Lesson, lesson_batch, open_lessons
from rlvid.enhancement.folder import save_enhancer
from rlvid.enhancement.language_model import LanguageModel, open_language_model
from rlvid.enhancement.rewriter import Rewrite, open_rewriter
from rlvid.enhancement.scoring import collate
from rlvid.enhancement.template import load_template
from rlvid.learners.enhancer_drift import SamplingDrift
from rlvid.learners.enhancer_merge import merged_language_model
from rlvid.learners.enhancer_parts import AnswerScorer, Part
from rlvid.learners.enhancer_settings import EnhancerSettings
from rlvid.learners.schedule import learning_rate
from rlvid.learners.trainee import learner_device
from rlvid.learners.zero_engine import ZeroEngine
from rlvid.models.lora import add_lora
from rlvid.records import Prompt, StepReport
from rlvid.seeds import derive_seed

STATE_FILE = "enhancer_learner.json"


class EnhancerLearner:
    """Holds the rewriter and takes optimiser steps on it."""

    def __init__(self, settings: EnhancerSettings, language: LanguageModel | None = None) -> None:
        """Open and wrap the language model; a collective of all ranks.

        Args:
            language: an opened one to use instead of the settings'; it carries no adapter.
        """
        trainee, config = settings.trainee, settings.enhancement
        torch.set_num_threads(trainee.num_threads)
        self._settings, self._config = settings, config
        start = config.rewriter.model_copy(update={"model": trainee.policy.model_path})
        self._language = language or open_language_model(start)
        model = self._language.model
        device = learner_device(trainee.model, trainee.learner)
        model.to(device)
        reference: Any = None
        if trainee.learner.mode == "lora":
            add_lora(model, trainee.learner.lora, seed=derive_seed(trainee.seed, "enhancer lora"))
        else:
            if config.algorithm.kl_coefficient:
                reference = copy.deepcopy(model).requires_grad_(False).eval()
            model.requires_grad_(True)
        self.engine = ZeroEngine(model, trainee.learner, device=device)
        # Dropout would make a ratio differ from 1 where nothing has changed.
        self.engine.transformer.eval()
        self._scorer = AnswerScorer(
            self.engine,
            reference,
            temperature=config.rewriter.temperature,
            micro_batch_rows=trainee.learner.micro_batch_rows,
            has_kl=config.algorithm.kl_coefficient > 0.0,
        )
        self._rewriter = open_rewriter(
            self._language,
            config.rewriter,
            config.reward.length,
            allows_unchanged=config.reward.allows_unchanged,
        )
        self._lessons: tuple[Lesson, ...] | None = None
        self.optimizer_steps = 0
        self.num_micro_batches = 0
        """Done since the process began; a sign of life."""

    def train_steps(self, first: int, last: int) -> list[StepReport]:
        """Take the cold start's steps `first` to `last` - 1; a collective of all ranks."""
        return [self._lesson_step(step) for step in range(first, last)]

    def rewrite(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]
    ) -> list[list[Rewrite]]:
        """Return rewrites of this rank's share of the prompts: every `world_size`-th."""
        ranks = self.engine.ranks
        mine = slice(ranks.rank, None, ranks.world_size)
        if not prompts[mine]:
            return []
        return self._rewriter.rewrite(prompts[mine], seeds[mine])

    def publish_adapter(self, folder: Path) -> PublishedAdapter:
        """Write the adapter as it is now below `folder`, for a server; a collective.

        Rank 0 writes it, and what is there already stays.
        """
        tensors = {name: tensor.cpu() for name, tensor in self.engine.full_parameters()}
        published = publish_adapter(
            folder,
            tensors,
            self._settings.trainee.learner.lora,
            version=self.optimizer_steps,
            writes=self.engine.ranks.rank == 0,
        )
        self.engine.ranks.barrier()
        return published

    def learn(
        self,
        rewrites: Sequence[Sequence[Rewrite]],
        advantage: Tensor,
        trained: Tensor,
        *,
        step: int,
    ) -> StepReport:
        """Take the updates of one batch of rewrites [P][G]; a collective of all ranks.

        A batch of which nothing is trained changes nothing, and says so in `enhance/rows/count`.

        Args:
            advantage, trained: [P, G]; see `Credit`.
        """
        began = time.perf_counter()
        batch = collate(
            [rewrite.sampled for group in rewrites for rewrite in group],
            group_index=[row for row, group in enumerate(rewrites) for _ in group],
            advantage=advantage.reshape(-1),
            trained=trained.reshape(-1),
            config=self._config.algorithm,
            max_new_tokens=self._config.rewriter.max_new_tokens,
            pad_id=self._language.pad_id,
        )
        num_rows = int(trained.sum())
        metrics = {"enhance/rows/count": float(num_rows)}
        if num_rows:
            metrics |= self._updates(batch, num_rows)
            metrics["enhance/tokens/mean"] = float(batch.answer_mask.sum() / trained.numel())
        metrics["time/learn/seconds"] = time.perf_counter() - began
        return StepReport(step=step, metrics=metrics)

    def export(self, folder: Path) -> None:
        """Write the whole rewriter, adapter merged, with its settings; a collective."""
        tensors = {name: tensor.cpu() for name, tensor in self.engine.full_parameters()}
        if self.engine.ranks.rank == 0:
            trainee, config = self._settings.trainee, self._config
            start = config.rewriter.model_copy(update={"model": trainee.policy.model_path})
            language = merged_language_model(start, tensors, trainee.learner)
            save_enhancer(folder, language, config)
        self.engine.ranks.barrier()

    def save(self, folder: Path) -> None:
        """Write weights and moments; a collective. Nothing random has a state."""
        self.engine.save(folder)
        if self.engine.ranks.rank == 0:
            tree = {
                "mode": self._settings.trainee.learner.mode,
                "optimizer_steps": self.optimizer_steps,
            }
            (folder / STATE_FILE).write_text(json.dumps(tree, indent=1))
        self.engine.ranks.barrier()

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote, right after opening; a collective.

        Raises:
            ValueError: it was written in the other mode.
        """
        tree = json.loads((folder / STATE_FILE).read_text())
        mode = self._settings.trainee.learner.mode
        if tree["mode"] != mode:
            raise ValueError(
                f"checkpoint {folder}: prompt_enhancement.learner.mode: expected {mode!r} (the "
                f"recipe's), got {tree['mode']!r}; resume with the recipe it was written with"
            )
        self.optimizer_steps = int(tree["optimizer_steps"])
        self.engine.load(folder, num_steps=self.optimizer_steps)

    def _lesson_step(self, step: int) -> StepReport:
        began = time.perf_counter()
        config, size = self._config, self._config.cold_start.batch_size
        batch = lesson_batch(
            self._lessons_of(step),
            self._language,
            load_template(config.rewriter.template),
            config.reward.length,
            config.algorithm,
        )
        rate = self._next_learning_rate()
        # A lesson's loss is minus the log-probability, which the ratio of 1 has not in its value.
        algorithm = config.algorithm.model_copy(update={"kl_coefficient": 0.0})
        parts = list(self._scorer.parts(batch))
        loss_sum = 0.0
        for number, part in enumerate(parts):
            policy = self._scorer.score(part)
            terms = token_grpo_loss(policy, part.batch, algorithm)
            self._backward(terms, size, is_last=number == len(parts) - 1)
            mask = part.batch.answer_mask & part.batch.trained[:, None]
            weighted = policy.detach() * part.batch.token_weight[:, None]
            loss_sum -= float(torch.where(mask, weighted, 0.0).sum()) / size
        norm = self._step(rate)
        return StepReport(
            step=step,
            metrics={
                "enhance/lesson_loss/mean": self.engine.ranks.sum([loss_sum])[0],
                "enhance/lesson_grad_norm/total": norm,
                "enhance/learning_rate/value": rate,
                "time/learn/seconds": time.perf_counter() - began,
            },
        )

    def _lessons_of(self, step: int) -> list[Lesson]:
        """Return the pairs of a step, the same on every rank and after every resume."""
        seed, config = self._settings.trainee.seed, self._config
        if self._lessons is None:
            allows_unchanged = config.reward.allows_unchanged
            self._lessons = open_lessons(
                config.cold_start, seed=seed, allows_unchanged=allows_unchanged
            )
        lessons, size = self._lessons, config.cold_start.batch_size
        chosen = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, len(lessons))
            order = seeded_order(seed, "cold start", epoch, len(lessons))
            chosen.append(lessons[order[place]])
        return chosen

    def _updates(self, batch: TokenBatch, num_rows: int) -> dict[str, float]:
        """Take all updates of a batch; return the metrics of the last, but drift of the first."""
        config = self._config.algorithm
        parts = [self._scorer.with_reference(part) for part in self._scorer.parts(batch)]
        metrics: dict[str, float] = {}
        drift, drift_metrics = SamplingDrift(), dict[str, float]()
        for update in range(config.num_updates):
            rate = self._next_learning_rate()
            terms = []
            for number, part in enumerate(parts):
                policy = self._score(part, drift)
                found = token_grpo_loss(policy, part.batch, config)
                self._backward(found, num_rows, is_last=number == len(parts) - 1)
                terms.append(found)
            if update == 0:
                limit = self._config.sampler.max_drift_frac * config.clip_low
                drift_metrics = drift.checked(self.engine.ranks, limit)
            norm = self._step(rate)
            metrics = self._metrics(terms, num_rows)
            metrics["enhance/grad_norm/total"] = norm
            metrics["enhance/learning_rate/value"] = rate
        return metrics | drift_metrics

    def _score(self, part: Part, drift: SamplingDrift) -> Tensor:
        """Score a part; the first time its behaviour is compared with what the sampler recorded."""
        sampled, is_first = part.batch.behaviour_log_prob, not part.is_scored
        policy = self._scorer.score(part)
        if is_first:
            drift.add(part.batch, sampled)
            cap = self._config.sampler.importance_cap
            if cap is not None:
                weight = truncated_importance(part.batch.behaviour_log_prob, sampled, cap=cap)
                part.batch = replace(part.batch, importance=weight)
        return policy

    def _backward(self, terms: LossTerms, divisor: int, *, is_last: bool) -> None:
        self.engine.backward(terms.loss_sum / divisor, is_last=is_last)
        self.num_micro_batches += 1

    def _next_learning_rate(self) -> float:
        trainee = self._settings.trainee
        return learning_rate(trainee.learner.optimizer, self.optimizer_steps, trainee.total_steps)

    def _step(self, rate: float) -> float:
        norm = self.engine.step(rate)
        self.optimizer_steps += 1
        return norm

    def _metrics(self, terms: Sequence[LossTerms], num_rows: int) -> dict[str, float]:
        """Return means and extremes over the trained rows of all ranks."""
        ranks = self.engine.ranks
        names = [name for name in MEANS if name in terms[0].sums]
        sums = [sum(float(term.loss_sum.detach()) for term in terms)]
        sums += [sum(float(term.sums[name]) for term in terms) for name in names]
        loss, *means = (value / num_rows for value in ranks.sum(sums))
        largest = max(float(term.maxima["ratio_deviation_max"]) for term in terms)
        metrics = {MEANS[name]: value for name, value in zip(names, means, strict=True)}
        metrics["enhance/loss/mean"] = loss
        metrics["enhance/ratio/max_deviation"] = ranks.max([largest])[0]
        return metrics


MEANS = {
    "ratio": "enhance/ratio/mean",
    "clip_frac": "enhance/clip/frac",
    "kl": "enhance/kl/mean",
    "importance": "enhance/importance/mean",
}
"""Sums of the loss over answers to the metrics that are their means."""
