"""Which of two clips of a group is better, asked in both orders; the score is the win rate."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlvid.records import Prompt
from rlvid.rewards.base import RewardError
from rlvid.rewards.judges.client import JudgeAnswerError
from rlvid.rewards.judges.modes.base import Clip, Judge
from rlvid.rewards.judges.prompt_files import Pair
from rlvid.rewards.judges.router import JudgeRequestError
from rlvid.rewards.judges.sight import JudgeSightError

logger = logging.getLogger(__name__)

LASTING = (JudgeAnswerError, JudgeRequestError)
"""Failures that asking again would not change: sampling is greedy, and a 4xx is the request's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairwise:
    """Win rate of each clip of a group."""

    pair: Pair
    opponents: int | None = None
    """Clips each is compared with, at least: a ring of that many neighbours. None: all of them,
    G (G - 1) requests."""

    async def win_rates(self, judge: Judge, clips: Sequence[Clip], prompt: Prompt) -> list[float]:
        """Return [G] in [0, 1], of the comparisons that were answered.

        A clip with none is NaN when its own answers were no judgement, which asking again would not
        change and which is no reason to lose the group.

        Raises:
            RewardError: a clip has none for another reason, so that another try may do better; or
                no clip has any.
        """
        pairs = pairs_of(len(clips), self.opponents)
        found = await asyncio.gather(
            *(self._first_is_better(judge, clips[i], clips[j], prompt) for i, j in pairs),
            return_exceptions=True,
        )
        won: list[list[float]] = [[] for _ in clips]
        lost: list[list[RewardError]] = [[] for _ in clips]
        failures = []
        for (i, j), answer in zip(pairs, found, strict=True):
            if isinstance(answer, BaseException):
                if isinstance(answer, JudgeSightError) or not isinstance(answer, RewardError):
                    raise answer
                failures.append(answer)
                lost[i].append(answer)
                lost[j].append(answer)
                continue
            won[i].append(answer)
            won[j].append(1.0 - answer)
        if failures and len(failures) == len(pairs):
            raise failures[0]
        for wins, errors in zip(won, lost, strict=True):
            passing = [error for error in errors if not isinstance(error, LASTING)]
            if passing and not wins:
                raise passing[0]
        if failures:
            logger.warning("comparisons missing count=%d first=%s", len(failures), failures[0])
        return [sum(wins) / len(wins) if wins else math.nan for wins in won]

    async def _first_is_better(self, judge: Judge, one: Clip, two: Clip, prompt: Prompt) -> float:
        """Return the mean of both orders: a leaning to the first place cancels."""
        forward, backward = await self.both_orders(judge, one, two, prompt)
        return (forward + 1.0 - backward) / 2.0

    async def both_orders(
        self, judge: Judge, one: Clip, two: Clip, prompt: Prompt
    ) -> tuple[float, float]:
        """Return the probability that the clip shown first is named: `one` first, `two` first."""
        return await asyncio.gather(
            self._ask(judge, one, two, prompt), self._ask(judge, two, one, prompt)
        )

    async def _ask(self, judge: Judge, one: Clip, two: Clip, prompt: Prompt) -> float:
        """Return the probability that the clip shown first is named."""
        shares = await judge.shares(
            [one.shown(), two.shown()],
            judge.text(self.pair.ask, prompt, one),
            (self.pair.first, self.pair.second),
            system=judge.text(judge.file.system, prompt, one),
            labels=(self.pair.label_first, self.pair.label_second),
        )
        return shares[0]


def pairs_of(count: int, opponents: int | None) -> list[tuple[int, int]]:
    """Return each pair once: all, or a ring in which each clip meets its next neighbours."""
    if opponents is None or opponents >= count - 1:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    steps = range(1, -(-opponents // 2) + 1)
    ring = {tuple(sorted((i, (i + step) % count))) for step in steps for i in range(count)}
    return sorted((a, b) for a, b in ring)
