"""A virtual reward pool: workers that decode and score one group at a time, first come first."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

from rlvid.launch.simulate.clock import VirtualClock
from rlvid.launch.simulate.costs import CostModel
from rlvid.launch.simulate.failures import Fate, Injector
from rlvid.launch.simulate.tally import Tally
from rlvid.records import Score
from rlvid.rewards.scoring import GroupScores

SCORED = GroupScores(scores=(), decode_s=0.0, score_s=0.0)


class VirtualRewards:
    """The loop's `Rewards` in virtual time."""

    def __init__(
        self,
        clock: VirtualClock,
        num_workers: int,
        *,
        costs: CostModel,
        injector: Injector,
        tally: Tally,
        source: random.Random,
        deadline_s: float,
    ) -> None:
        self._clock, self._costs, self._injector = clock, costs, injector
        self._tally, self._source, self._deadline_s = tally, source, deadline_s
        self._idle = num_workers
        self._waiting: deque[tuple[int, str]] = deque()
        self._answers: list[tuple[int, GroupScores]] = []
        self._next_ticket = 0
        self._is_open = True

    def submit(self, group_ref: Any, scorers: Sequence[str] | None = None) -> int:
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        self._waiting.append((ticket, group_ref))
        self._feed()
        return ticket

    def collect(self, timeout_s: float) -> Sequence[tuple[int, GroupScores]]:
        answers, self._answers = self._answers, []
        return answers

    def close(self) -> None:
        self._is_open = False

    def _feed(self) -> None:
        while self._idle and self._waiting:
            self._idle -= 1
            self._begin(*self._waiting.popleft())

    def _begin(self, ticket: int, group_id: str) -> None:
        fate = self._injector.fate("score")
        costs, source = self._costs, self._source
        seconds = costs.decode_s.draw(source) + costs.reward_s.draw(source)
        is_done = fate is Fate.DONE
        if fate is Fate.KILLED:
            seconds *= source.random()
        elif fate is Fate.STUCK:
            seconds = self._deadline_s

        def end() -> None:
            if not self._is_open:
                return
            self._idle += 1
            self._tally.scoring_s += seconds
            if is_done:
                self._answers.append((ticket, self._scores(group_id)))
                self._clock.progress()
            else:  # another worker takes it first of all
                self._tally.wasted_scoring_s += seconds
                self._waiting.appendleft((ticket, group_id))
            self._feed()

        self._clock.after(seconds, end)

    def _scores(self, group_id: str) -> GroupScores:
        if not self._injector.strikes("score_missing"):
            return SCORED
        missing = Score(group_id=group_id, index=0, scorer="virtual", value=None, error="missing")
        return GroupScores(scores=(missing,), decode_s=0.0, score_s=0.0)
