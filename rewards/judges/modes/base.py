"""What every mode works with: the clip as it is shown, the judge that is asked, its verdict."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlvid.records import Prompt
from rlvid.rewards.judges.client import Completion, JudgeAnswerError, JudgeClient, message
from rlvid.rewards.judges.frames import Frames, Shown, View
from rlvid.rewards.judges.prompt_files import PromptFile, render
from rlvid.rewards.judges.sight import Sight


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a mode made of a clip."""

    value: float
    """NaN when the clip could not be judged."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Name of each question to its value, for reports."""
    reason: str = ""
    """Why `value` is NaN, or what the model said."""


class Clip:
    """One clip; each part of it is encoded once, however many questions show it."""

    def __init__(self, frames: Frames, *, fps: float, view: View) -> None:
        """`frames` are uint8 [T, H, W, 3]."""
        self.num_frames = len(frames)
        self.fps = fps
        self._frames = frames
        self._view = view
        self._shown: dict[str, Shown] = {}

    def shown(self, part: str = "all") -> Shown:
        if part not in self._shown:
            self._shown[part] = self._view.show(self._frames, self.fps, part)
        return self._shown[part]


class Judge:
    """A model, its prompt file, and the check of what it saw; lives in the router's loop."""

    def __init__(
        self, client: JudgeClient, file: PromptFile, *, checks_sight: bool, concurrency: int
    ) -> None:
        self.file = file
        self._client = client
        self._sight = Sight(client) if checks_sight else None
        self._room = asyncio.Semaphore(concurrency)

    def text(self, template: str, prompt: Prompt, clip: Clip, **more: Any) -> str:
        """Render a template of the file."""
        return render(template, prompt, num_frames=clip.num_frames, fps=clip.fps, **more)

    async def shares(
        self,
        shown: Sequence[Shown],
        text: str,
        words: Sequence[str],
        *,
        system: str = "",
        labels: Sequence[str] = (),
    ) -> tuple[float, ...]:
        """Return the probability of each word among them, as the first token of the answer.

        Raises:
            JudgeAnswerError: the server named none of them; that is no 0 but a missing score.
        """
        async with self._room:
            found = await self._client.first_token(
                message(shown, text, labels), words, system=system
            )
        await self._check(shown, text, found.completion, system, labels)
        shares = found.probabilities()
        if shares is None:
            raise JudgeAnswerError(
                f"judge: none of {', '.join(map(repr, words))} was among the tokens that the "
                "server reported. It does not know logprob_token_ids; use a vLLM server."
            )
        return shares

    async def p_yes(self, shown: Sequence[Shown], text: str, *, system: str = "") -> float:
        """Return P(yes) / (P(yes) + P(no))."""
        words = (self.file.yes, self.file.no)
        return (await self.shares(shown, text, words, system=system))[0]

    async def json_object(
        self,
        shown: Sequence[Shown],
        text: str,
        schema: Mapping[str, Any],
        *,
        max_tokens: int,
        system: str = "",
    ) -> Mapping[str, Any]:
        async with self._room:
            found, answer = await self._client.json_object(
                message(shown, text), schema, max_tokens=max_tokens, system=system
            )
        await self._check(shown, text, answer, system, ())
        return found

    async def say(
        self, shown: Sequence[Shown], text: str, *, max_tokens: int, system: str = ""
    ) -> str:
        """Return a free answer; JudgeAnswerError when it is empty."""
        async with self._room:
            answer = await self._client.chat(
                message(shown, text) if shown else text, system=system, max_tokens=max_tokens
            )
        await self._check(shown, text, answer, system, ())
        if not answer.text.strip():
            raise JudgeAnswerError("judge: the answer is empty.")
        return answer.text.strip()

    async def _check(
        self,
        shown: Sequence[Shown],
        text: str,
        answer: Completion,
        system: str,
        labels: Sequence[str],
    ) -> None:
        if self._sight is not None and shown:
            texts = [*(label for label in labels if label), text]
            await self._sight.check(shown, texts, answer, system=system)


class Mode(Protocol):
    """Judges one clip on its own."""

    async def judge(self, judge: Judge, clip: Clip, prompt: Prompt) -> Verdict:
        """Raise RewardError when the clip could not be judged."""
        ...


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the mean; NaN when a value is, since clips with other questions do not compare."""
    total = sum(weights)
    if not values or total <= 0:
        return math.nan
    return sum(v * w for v, w in zip(values, weights, strict=True)) / total
