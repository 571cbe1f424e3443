"""Calls of the driver on the gang of ranks, in order: who has answered, who is late, who is lost.

    add -> waits its turn -> head -> every rank answered          -> answers
                              | ranks failed                      -> the error of the first
                              | a rank died, is late or silent    -> LearnerLostError, and the gang
                                                                     is lost for all calls after it

A plain state machine with a clock argument; `gang_loop` has the thread and the processes. Every
call is a collective, so one rank's failure holds up the others: they get a moment, then the call
ends. Ray notices a dead rank at once and a stopped one never; heartbeats find that one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

GRACE_S = 2.0
"""Between the first rank's failure and the report of it."""


class LearnerLostError(RuntimeError):
    """A rank died or is stuck; the gang must be started again from the last checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How a call ended."""

    number: int
    answers: tuple[Any, ...] = ()
    """By rank."""
    error: Exception | None = None
    failed_rank: int | None = None
    """The rank whose own error `error` is."""
    doing: str = ""


@dataclass(slots=True, kw_only=True)
class _Call:
    number: int
    doing: str
    deadline_s: float
    has_progress: bool
    answers: dict[int, Any] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)
    started_s: float = 0.0
    """When it became the head of the queue."""
    failed_s: float | None = None
    """When the first rank failed."""


class CallQueue:
    """All calls that are not settled, oldest first."""

    def __init__(self, num_ranks: int, *, stall_s: float) -> None:
        self._num_ranks = num_ranks
        self._stall_s = stall_s
        self._calls: deque[_Call] = deque()
        self._next_number = 0
        self._heard_s: dict[int, float] = {}
        """Rank to when it last gave a sign of life; empty until heartbeats are on."""
        self._ticks: dict[int, int] = {}
        self._moved_s = 0.0
        """When any rank last finished a micro-batch."""
        self._deaths: dict[int, str] = {}
        self._death_s: float | None = None
        self.lost: LearnerLostError | None = None
        """Why the gang is of no use any more."""

    def add(self, doing: str, deadline_s: float, now: float, *, has_progress: bool = False) -> int:
        """Append a call that all ranks were just given and return its number.

        Args:
            doing: for messages, "step 3".
            deadline_s: seconds from when it becomes the head.
            has_progress: ranks report micro-batches while they work on it.
        """
        number = self._next_number
        self._next_number += 1
        call = _Call(
            number=number,
            doing=doing,
            deadline_s=deadline_s,
            has_progress=has_progress,
            started_s=now,
        )
        self._calls.append(call)
        return number

    def set_deadline(self, number: int, deadline_s: float, now: float) -> None:
        """Give a call that long from now on."""
        for call in self._calls:
            if call.number == number:
                call.deadline_s = deadline_s
                call.started_s = now

    def answered(self, number: int, rank: int, value: Any) -> None:
        for call in self._calls:
            if call.number == number:
                call.answers[rank] = value

    def failed(self, number: int, rank: int, error: Exception, now: float) -> None:
        """Note that a rank's part of a call raised."""
        for call in self._calls:
            if call.number == number:
                call.errors[rank] = error
                call.failed_s = now if call.failed_s is None else call.failed_s

    def died(self, rank: int, reason: str, now: float) -> None:
        """Note that a rank's process ended."""
        self._deaths.setdefault(rank, reason)
        self._death_s = now if self._death_s is None else self._death_s

    def listen(self, now: float) -> None:
        """Expect signs of life from now on; before, a rank imports and loads in silence."""
        self._heard_s = dict.fromkeys(range(self._num_ranks), now)
        self._moved_s = now

    @property
    def listens(self) -> bool:
        return bool(self._heard_s)

    def heard(self, rank: int, ticks: int, now: float) -> None:
        """Take a heartbeat: the rank lives and has finished `ticks` micro-batches in all."""
        if not self.listens:
            return
        self._heard_s[rank] = now
        if ticks != self._ticks.get(rank):
            self._ticks[rank] = ticks
            self._moved_s = now

    def poll(self, now: float) -> list[Settled]:
        """Return the calls that have ended by now, in order."""
        settled: list[Settled] = []
        while self._calls and self.lost is None:
            head = self._calls[0]
            self.lost = self._loss(head, now)
            if self.lost is not None:
                break
            result = self._result(head, now)
            if result is None:
                break
            settled.append(result)
            self._calls.popleft()
            if self._calls:
                self._calls[0].started_s = max(self._calls[0].started_s, now)
        if self.lost is None and self._deaths and not self._calls:
            self.lost = self._loss(None, now)
        if self.lost is not None:
            settled += [Settled(number=call.number, error=self.lost) for call in self._calls]
            self._calls.clear()
        return settled

    def next_wakeup(self, now: float) -> float:
        """Return when `poll` may have something to say though nobody answers."""
        if self.lost is not None:
            return now + 3600.0
        times = [now + 3600.0]
        if self._death_s is not None:
            times.append(self._death_s + GRACE_S)
        if self._calls:
            head = self._calls[0]
            times.append(head.started_s + head.deadline_s)
            if head.failed_s is not None:
                times.append(head.failed_s + GRACE_S)
            if self.listens:
                times.append(min(self._heard_s.values()) + self._stall_s)
                if head.has_progress:
                    times.append(max(self._moved_s, head.started_s) + self._stall_s)
        return min(times)

    def _result(self, head: _Call, now: float) -> Settled | None:
        if len(head.answers) == self._num_ranks:
            answers = tuple(head.answers[rank] for rank in range(self._num_ranks))
            return Settled(number=head.number, answers=answers, doing=head.doing)
        if head.failed_s is None or self._deaths:
            return None
        num_back = len(head.answers) + len(head.errors)
        if num_back < self._num_ranks and now < head.failed_s + GRACE_S:
            return None
        rank = min(head.errors)
        if len(head.errors) < self._num_ranks:
            # The others wait in a collective for the one that failed, or have gone past it.
            self.lost = LearnerLostError(
                f"learner: rank {rank} failed in {head.doing} and the others did not: "
                f"{head.errors[rank]!r}. Resume the run: it goes on from the last checkpoint"
            )
        return Settled(
            number=head.number, error=head.errors[rank], failed_rank=rank, doing=head.doing
        )

    def _loss(self, head: _Call | None, now: float) -> LearnerLostError | None:
        """Return why the gang is lost; None while it may still answer."""
        doing = head.doing if head else "idle"
        if self._death_s is not None and (now >= self._death_s + GRACE_S or not head):
            rank = min(self._deaths)
            return LearnerLostError(
                f"learner: rank {rank} died while {doing}: {self._deaths[rank]}. Resume the run: "
                "it goes on from the last checkpoint"
            )
        if head is None or self._death_s is not None:
            return None
        late = [rank for rank in range(self._num_ranks) if not self._is_back(head, rank)]
        names = ", ".join(map(str, late))
        if late and now >= head.started_s + head.deadline_s:
            return LearnerLostError(
                f"learner: rank {names} did not finish {head.doing} within {head.deadline_s:g} s. "
                "Raise learner.deadline_s, or look at its log"
            )
        if not self.listens or not late:
            return None
        silent = [rank for rank, at in self._heard_s.items() if now >= at + self._stall_s]
        if silent:
            return LearnerLostError(
                f"learner: rank {', '.join(map(str, silent))} gave no sign of life for "
                f"{self._stall_s:g} s while {head.doing}: stopped, out of memory, or its node is "
                "gone. Raise learner.stall_s if it is only slow"
            )
        if head.has_progress and now >= max(self._moved_s, head.started_s) + self._stall_s:
            ticks = ", ".join(f"rank {r}: {n}" for r, n in sorted(self._ticks.items()))
            return LearnerLostError(
                f"learner: rank {names} finished no micro-batch for {self._stall_s:g} s while "
                f"{head.doing} (done so far {ticks}). Raise learner.stall_s, or lower "
                "learner.micro_batch_rows"
            )
        return None

    @staticmethod
    def _is_back(call: _Call, rank: int) -> bool:
        return rank in call.answers or rank in call.errors
