"""One step of prompt enhancement: rewrite, render, score, credit, learn; and its metrics.

Letters: P prompts of a step, G rewrites of a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvid.algorithms.base import Credit
from rlvid.config import Recipe
from rlvid.data.prompts import prompts_for_step
from rlvid.enhancement.answer import Answer
from rlvid.enhancement.lexicon import Lexicon
from rlvid.enhancement.rewards import TextScores, reward_parts, rewrite_credit, text_scores
from rlvid.enhancement.rewriter import rewrite_seed
from rlvid.launch.enhancement.rendering import RewriteRendering, score_rewrites
from rlvid.launch.enhancement.rewriting import Rewriting
from rlvid.launch.roles import SamplingRoles
from rlvid.learners.enhancer_group import EnhancerGroup
from rlvid.records import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class EnhancementSteps:
    """Takes steps; step n is a function of (seed, n) and of the rewriter before it."""

    recipe: Recipe
    prompts: Sequence[Prompt]
    """All that are trained on."""
    roles: SamplingRoles
    learner: EnhancerGroup
    rewriting: Rewriting
    rendering: RewriteRendering
    lexicon: Lexicon

    def take(self, step: int) -> dict[str, float]:
        """Take step `step` (from 0) and return its metrics."""
        config, seed = self.recipe.prompt_enhancement, self.recipe.seed
        began = time.perf_counter()
        visits = prompts_for_step(self.prompts, seed, step, config.prompts_per_step)
        prompts = [prompt for prompt, _ in visits]
        seeds = [
            [rewrite_seed(seed, prompt.prompt_id, visit, n) for n in range(config.group_size)]
            for prompt, visit in visits
        ]
        rewrites = self.rewriting.rewrite(prompts, seeds)
        sampled = time.perf_counter()
        answers = [[rewrite.answer for rewrite in group] for group in rewrites]
        issues = self.rendering.issues(visits, answers, step=step)
        scorers = [scorer.label for scorer in self.recipe.rewards.scorers]
        shape = (len(prompts), config.group_size)
        video = score_rewrites(self.roles, issues, scorers=scorers, shape=shape)
        rendered = time.perf_counter()
        text, parts, credited = self._credit(prompts, answers, video)
        report = self.learner.learn(rewrites, credited.advantage, credited.trained, step=step)
        return {
            **report.metrics,
            **self.rewriting.metrics(),
            **text_metrics(text),
            **reward_metrics(parts, video, credited, ~text.is_malformed),
            "enhance/clips/per_s": len(issues) * config.clips_per_rewrite / (rendered - sampled),
            "time/sample/seconds": sampled - began,
            "time/render/seconds": rendered - sampled,
            "time/step/seconds": time.perf_counter() - began,
        }

    def _credit(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[Answer]],
        video: Mapping[str, Tensor],
    ) -> tuple[TextScores, dict[str, Tensor], Credit]:
        config = self.recipe.prompt_enhancement
        text = text_scores(
            prompts,
            answers,
            length=config.reward.length,
            intent=config.reward.intent,
            lexicon=self.lexicon,
        )
        weights = {scorer.label: scorer.weight for scorer in self.recipe.rewards.scorers}
        parts, _ = reward_parts(text, video, weights, config.reward)
        credited = rewrite_credit(
            text, video, weights, reward=config.reward, advantage=config.algorithm.advantage
        )
        return text, parts, credited


def text_metrics(text: TextScores) -> dict[str, float]:
    """Return how the answers were written."""
    return {
        "enhance/malformed/frac": float(text.is_malformed.float().mean()),
        "enhance/intent_dropped/count": float(text.num_dropped),
        "enhance/intent_contradicted/count": float(text.num_contradicted),
        **{f"enhance/failure_{kind}/count": float(n) for kind, n in text.failures.items()},
    }


def reward_metrics(
    parts: Mapping[str, Tensor], video: Mapping[str, Tensor], credited: Credit, asked: Tensor
) -> dict[str, float]:
    """Return what the rewrites earned; a missing score takes no part in a mean.

    Args:
        asked: [P, G] bool, rewrites that were to be rendered.
    """
    metrics = {"enhance/groups/dropped": float(len(credited.dropped))}
    known = credited.reward[~credited.reward.isnan()]
    if known.numel():
        metrics["enhance/reward/mean"] = float(known.mean())
        metrics["enhance/reward/std"] = float(known.std(correction=0))
    for name, values in parts.items():
        metrics |= _mean(f"enhance/part_{name}/mean", values)
    for name, values in video.items():
        metrics |= _mean(f"rewards/{name}/mean", values)
        missing = values[asked].isnan().float()
        if missing.numel():
            metrics[f"rewards/{name}/missing_frac"] = float(missing.mean())
    return metrics


def _mean(name: str, values: Tensor) -> dict[str, float]:
    mean = torch.nanmean(values)
    return {} if mean.isnan() else {name: float(mean)}
