"""Time that passes when nothing is left to do: a heap of events."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

MAX_TURNS = 10_000
"""Turns of the loop at one instant; more is a loop that moves nothing on."""
EMPTY_WAITS = 3
"""Waits with nothing under way at all, after which nothing will ever come."""


class StuckError(RuntimeError):
    """A schedule does not go on: nothing is under way, or what is under way moves nothing."""


class VirtualClock:
    """The loop's clock; whoever answers later says so with `after`."""

    def __init__(self, patience_s: float = 1e5) -> None:
        """Args:
        patience_s: seconds in which something must get done, see `progress`.
        """
        self._now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._patience_s = patience_s
        self._progressed_s = 0.0
        self._empty_waits = 0
        self._turns = 0
        self.on_pass: Callable[[float], None] = lambda seconds: None
        """Called with the seconds that pass, before what happens at their end."""

    def now(self) -> float:
        return self._now_s

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Have `event` called once so many seconds have passed."""
        self.at(self._now_s + seconds, event)

    def at(self, time_s: float, event: Callable[[], None]) -> None:
        """Have `event` called at that very time, bit for bit."""
        heapq.heappush(self._events, (time_s, next(self._numbers), event))

    def progress(self) -> None:
        """Say that work got done; heartbeats and attempts that fail are none."""
        self._progressed_s = self._now_s

    def turned(self) -> None:
        """Count a turn of the loop.

        Raises:
            StuckError: the loop turns without end and waits for nothing.
        """
        self._turns += 1
        if self._turns > MAX_TURNS:
            raise StuckError(f"the loop turned {MAX_TURNS} times at {self._now_s:.3f} s")

    def wait(self, timeout_s: float) -> None:
        """Go to the next events, however far; by `timeout_s` if there are none.

        Nothing happens before them, so a real loop that wakes earlier finds no news either.

        Raises:
            StuckError: nothing is under way, or nothing got done for `patience_s`.
        """
        if not self._events:
            self._empty_waits += 1
            self._pass(self._now_s + timeout_s)
            if self._empty_waits >= EMPTY_WAITS:
                raise StuckError(f"the loop waits and nothing is under way at {self._now_s:.3f} s")
            return
        self._empty_waits = 0
        self._pass(self._events[0][0])
        if self._now_s - self._progressed_s > self._patience_s:
            raise StuckError(
                f"nothing got done for {self._patience_s:g} s until {self._now_s:.3f} s"
            )
        while self._events and self._events[0][0] <= self._now_s:
            heapq.heappop(self._events)[2]()

    def skip(self, seconds: float) -> None:
        """Let time pass in which nobody listens; what was due happens at once afterwards."""
        self._pass(self._now_s + seconds)
        self.progress()

    def _pass(self, until_s: float) -> None:
        if until_s > self._now_s:
            self.on_pass(until_s - self._now_s)
            self._now_s, self._turns = until_s, 0
