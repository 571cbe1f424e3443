"""Sets of yes/no questions, answered by the log-probabilities of the first token; one is P(yes)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlvid.records import Prompt
from rlvid.rewards.judges.modes.base import Clip, Judge, Verdict, weighted_mean
from rlvid.rewards.judges.prompt_files import Question

Combine = Literal["mean", "fraction_yes", "all_yes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    """Gates first, one after the other; then all other questions at the same time."""

    questions: Sequence[Question]
    combine: Combine = "mean"
    """mean: of P(yes), smooth, for training. fraction_yes: share above `threshold`. all_yes: 1 when
    all are above it, else 0 (VBench-2.0's motion rationality)."""
    threshold: float = 0.5
    debiases: bool = False
    """Ask the negated question too and use `debiased`."""

    async def judge(self, judge: Judge, clip: Clip, prompt: Prompt) -> Verdict:
        """Return the combined answers; NaN when a gate excludes the clip."""
        parts: dict[str, float] = {}
        asked = [q for q in self.questions if not q.when or judge.text(q.when, prompt, clip)]
        for question in asked:
            if question.gate == "none":
                continue
            value = await self._answer(judge, clip, prompt, question, parts)
            if value <= self.threshold and question.gate == "exclude":
                reason = f"gate {question.name!r} excludes it (P(yes) {value:.2f})"
                return Verdict(value=math.nan, parts=parts, reason=reason)
            if value <= self.threshold:
                return Verdict(value=0.0, parts=parts, reason=f"gate {question.name!r} failed")
        counted = [q for q in asked if q.gate == "none"]
        values = await asyncio.gather(
            *(self._answer(judge, clip, prompt, question, parts) for question in counted)
        )
        if not counted:
            return Verdict(value=math.nan, parts=parts, reason="no question applies to the prompt")
        weights = [question.weight for question in counted]
        return Verdict(value=self._combined(values, weights), parts=parts)

    def _combined(self, values: Sequence[float], weights: Sequence[float]) -> float:
        if self.combine == "mean":
            return weighted_mean(values, weights)
        is_yes = [float(value > self.threshold) for value in values]
        return min(is_yes) if self.combine == "all_yes" else weighted_mean(is_yes, weights)

    async def _answer(
        self, judge: Judge, clip: Clip, prompt: Prompt, question: Question, parts: dict[str, float]
    ) -> float:
        """Return P(yes), of both twins where it debiases, and note it in `parts`."""
        shown = [clip.shown(question.show)]
        system = judge.text(judge.file.system, prompt, clip)
        asked = judge.p_yes(shown, judge.text(question.ask, prompt, clip), system=system)
        if not (self.debiases and question.negated):
            parts[question.name] = await asked
            return parts[question.name]
        twin = judge.text(question.negated, prompt, clip)
        plain, negated = await asyncio.gather(asked, judge.p_yes(shown, twin, system=system))
        parts[f"{question.name}/yes_bias"] = yes_bias(plain, negated)
        parts[question.name] = debiased(plain, negated)
        return parts[question.name]


def yes_bias(plain: float, negated: float) -> float:
    """Return P(yes|q) + P(yes|not q) - 1: 0 for a consistent judge, 1 for one that always says yes.

    Both are probabilities that the answer is yes, so a judge that reads the "not" has a sum of 1.
    """
    return plain + negated - 1.0


def debiased(plain: float, negated: float) -> float:
    """Return (P(yes|q) + 1 - P(yes|not q)) / 2, from which a constant leaning to yes cancels."""
    return (plain + 1.0 - negated) / 2.0
