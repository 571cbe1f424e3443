"""Grades by a rubric: as JSON with a reason, or as the expectation over the grades' tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlvid.records import Prompt
from rlvid.rewards.judges.modes.base import Clip, Judge, Verdict, weighted_mean
from rlvid.rewards.judges.prompt_files import Rubric

REASON_CHARACTERS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class RubricJson:
    """The model writes a reason and then a grade; (grade - 1) / (levels - 1) is the value.

    Coarse, so clips of a group tie, and tens of times the tokens of one logprob: for gates and
    held-out judges rather than for training.
    """

    rubrics: Sequence[Rubric]
    max_tokens: int = 256

    async def judge(self, judge: Judge, clip: Clip, prompt: Prompt) -> Verdict:
        found = await asyncio.gather(*(self._grade(judge, clip, prompt, r) for r in self.rubrics))
        parts = {r.name: grade for r, (grade, _) in zip(self.rubrics, found, strict=True)}
        value = weighted_mean(list(parts.values()), [r.weight for r in self.rubrics])
        return Verdict(value=value, parts=parts, reason=" ".join(reason for _, reason in found))

    async def _grade(
        self, judge: Judge, clip: Clip, prompt: Prompt, rubric: Rubric
    ) -> tuple[float, str]:
        answer = await judge.json_object(
            [clip.shown()],
            judge.text(rubric.ask, prompt, clip, levels=rubric.levels),
            schema(rubric.levels),
            max_tokens=self.max_tokens,
            system=judge.text(judge.file.system, prompt, clip),
        )
        return (answer["score"] - 1) / (rubric.levels - 1), str(answer["reason"])


@dataclass(frozen=True, slots=True, kw_only=True)
class RubricTokens:
    """Expectation of the grade over the tokens "1" to "N" of the first answer token: smooth.

    value = (sum_k k p_k / sum_k p_k - 1) / (N - 1)
    """

    rubrics: Sequence[Rubric]

    async def judge(self, judge: Judge, clip: Clip, prompt: Prompt) -> Verdict:
        values = await asyncio.gather(*(self._grade(judge, clip, prompt, r) for r in self.rubrics))
        parts = {r.name: value for r, value in zip(self.rubrics, values, strict=True)}
        return Verdict(value=weighted_mean(values, [r.weight for r in self.rubrics]), parts=parts)

    async def _grade(self, judge: Judge, clip: Clip, prompt: Prompt, rubric: Rubric) -> float:
        words = [str(grade) for grade in range(1, rubric.levels + 1)]
        shares = await judge.shares(
            [clip.shown()],
            judge.text(rubric.ask, prompt, clip, levels=rubric.levels),
            words,
            system=judge.text(judge.file.system, prompt, clip),
        )
        return sum(grade * share for grade, share in enumerate(shares)) / (rubric.levels - 1)


def schema(levels: int) -> Mapping[str, Any]:
    """JSON schema of an answer; the reason comes first, so that the grade follows from it."""
    return {
        "type": "object",
        "properties": {
            "reason": {"type": "string", "maxLength": REASON_CHARACTERS},
            "score": {"type": "integer", "minimum": 1, "maximum": levels},
        },
        "required": ["reason", "score"],
        "additionalProperties": False,
    }
