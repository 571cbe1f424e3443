"""When a replica is given nothing for a while, because what it was given came to nothing."""

from __future__ import annotations

from collections import deque

FAILURES_TO_OPEN = 5
"""Failed calls in a row; above `max_attempts` of one clip, so that one bad clip opens none."""
SHARE_TO_OPEN = 0.5
"""Failed share of the last `WINDOW` calls."""
WINDOW = 20
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0


class CircuitBreaker:
    """Closed: calls go through. Open: none for a pause. Half open: one, which decides.

    Every failed trial doubles the pause. Time comes from the caller, in seconds of any clock.
    """

    def __init__(self) -> None:
        self._last: deque[bool] = deque(maxlen=WINDOW)
        self._in_a_row = 0
        self._pause_s = FIRST_PAUSE_S
        self._open_until: float | None = None
        self._is_trying = False
        self.num_openings = 0
        self.reason = ""
        """What the failure said that opened it."""

    def allows(self, now: float) -> bool:
        """True when a call may be made; half open lets one through at a time."""
        if self._open_until is None:
            return True
        return now >= self._open_until and not self._is_trying

    def is_open(self, now: float) -> bool:
        """True in the pause; False when closed and when a trial may be, or is being, made."""
        return self._open_until is not None and now < self._open_until

    def call_started(self) -> None:
        if self._open_until is not None:
            self._is_trying = True

    def call_withdrawn(self) -> None:
        """The call ended for a reason that says nothing about the replica."""
        self._is_trying = False

    def succeeded(self) -> None:
        self._last.append(True)
        self._in_a_row = 0
        self._pause_s = FIRST_PAUSE_S
        self._open_until = None
        self._is_trying = False

    def failed(self, now: float, reason: str, *, opens_for_s: float = 0.0) -> None:
        """Count a failed call; with `opens_for_s` it opens at once and for that long: a hang."""
        self._last.append(False)
        self._in_a_row += 1
        share = self._last.count(False) / WINDOW if len(self._last) == WINDOW else 0.0
        was_trying, self._is_trying = self._is_trying, False
        if self.is_open(now):  # a call made before it opened
            return
        many = self._in_a_row >= FAILURES_TO_OPEN or share >= SHARE_TO_OPEN
        if not (opens_for_s or was_trying or many):
            return
        if was_trying:
            self._pause_s = min(2.0 * self._pause_s, LONGEST_PAUSE_S)
        self._open_until = now + max(self._pause_s, opens_for_s)
        self._last.clear()
        self.num_openings += 1
        self.reason = reason
