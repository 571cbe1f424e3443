"""The questions that came with a prompt: the data engine has a language model write them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from rlvid.records import Prompt
from rlvid.rewards.judges.modes.base import Clip, Judge, Verdict, weighted_mean
from rlvid.rewards.judges.modes.questions import QuestionSet

SUFFIX = " Answer Yes or No."


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnQuestions:
    """Mean P(yes) over `Prompt.questions`; a prompt without any is asked those of the file.

    A question is sent as it was written and is no template: its text may be anything.
    """

    otherwise: QuestionSet

    async def judge(self, judge: Judge, clip: Clip, prompt: Prompt) -> Verdict:
        if not prompt.questions:
            return await self.otherwise.judge(judge, clip, prompt)
        shown = [clip.shown()]
        system = judge.text(judge.file.system, prompt, clip)
        answers = await asyncio.gather(
            *(judge.p_yes(shown, text + SUFFIX, system=system) for text in prompt.questions)
        )
        parts = dict(zip(prompt.questions, answers, strict=True))
        return Verdict(value=weighted_mean(answers, [1.0] * len(answers)), parts=parts)
