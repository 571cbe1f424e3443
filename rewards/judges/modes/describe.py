"""Describe, then judge: one model says what it sees, another that only reads decides.

A model that is told what to look for tends to find it; the describer is not told (VBench-2.0 judges
motion order, interaction and plot this way).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from rlvid.records import Prompt
from rlvid.rewards.judges.client import JudgeAnswerError
from rlvid.rewards.judges.modes.base import Clip, Judge, Verdict, weighted_mean
from rlvid.rewards.judges.prompt_files import Describe, Question


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeThenJudge:
    """The value is the share of the decider's questions answered with yes."""

    describe: Describe
    decider: Judge | None = None
    """None: the describer decides as well."""
    decides_by: Literal["logprob", "text"] = "logprob"
    """logprob: P(yes) of the decider, smooth. text: its word, which must be yes or no."""

    async def judge(self, judge: Judge, clip: Clip, prompt: Prompt) -> Verdict:
        seen = await judge.say(
            [clip.shown()],
            judge.text(self.describe.ask, prompt, clip),
            max_tokens=self.describe.max_tokens,
            system=judge.text(judge.file.system, prompt, clip),
        )
        questions = self.describe.questions
        decider = self.decider or judge
        values = await asyncio.gather(
            *(self._decide(decider, question, clip, prompt, seen) for question in questions)
        )
        parts = {q.name: value for q, value in zip(questions, values, strict=True)}
        weights = [question.weight for question in questions]
        return Verdict(value=weighted_mean(values, weights), parts=parts, reason=seen)

    async def _decide(
        self, decider: Judge, question: Question, clip: Clip, prompt: Prompt, seen: str
    ) -> float:
        text = decider.text(question.ask, prompt, clip, description=seen)
        if self.decides_by == "logprob":
            return await decider.p_yes([], text)
        word = await decider.say([], text, max_tokens=8)
        return read_verdict(word, yes=decider.file.yes, no=decider.file.no)


def read_verdict(text: str, *, yes: str, no: str) -> float:
    """Return 1.0 for yes and 0.0 for no; anything else is no verdict.

    "Yes and no" or "No idea" must not count as an answer, so the whole text has to be the word.
    """
    word = text.strip().strip(".!\"'*").strip().lower()
    if word not in (yes.lower(), no.lower()):
        raise JudgeAnswerError(
            f"judge: expected the verdict {yes!r} or {no!r}, got {text[:80]!r}. Ask for one word."
        )
    return float(word == yes.lower())
