"""A circuit breaker: when a replica is asked nothing for a while, as asking came to nothing."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """When it opens, and for how long."""

    max_failures: int = 5
    """Failures in a row that open it."""
    window: int = 20
    max_failed_frac: float = 0.5
    """Failed share of the last `window` calls that opens it."""
    open_s: float = 2.0
    """First pause; every failed trial doubles it."""
    max_open_s: float = 60.0


class CircuitBreaker:
    """Closed: calls go through. Open: none for a pause. Half open: one, which decides.

    Time comes from the caller, in seconds of any clock.
    """

    def __init__(self, settings: BreakerSettings | None = None) -> None:
        self.settings = settings or BreakerSettings()
        self._last: deque[bool] = deque(maxlen=self.settings.window)
        self._in_a_row = 0
        self._pause_s = self.settings.open_s
        self._open_until: float | None = None
        self._is_trying = False
        self.num_openings = 0
        self.reason = ""
        """What the failure said that opened it."""

    @property
    def is_closed(self) -> bool:
        return self._open_until is None

    def allows(self, now: float) -> bool:
        """True when a call may be made; half open lets one through at a time."""
        return self._open_until is None or (now >= self._open_until and not self._is_trying)

    def is_open(self, now: float) -> bool:
        """True in the pause; False when closed and when a trial may be, or is being, made."""
        return self._open_until is not None and now < self._open_until

    def wait_s(self, now: float) -> float:
        """Return the rest of the pause."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - now)

    def call_started(self) -> None:
        self._is_trying = self._open_until is not None

    def call_withdrawn(self) -> None:
        """The call ended for a reason that says nothing about the replica."""
        self._is_trying = False

    def succeeded(self) -> None:
        self._last.append(True)
        self._in_a_row = 0
        self._pause_s = self.settings.open_s
        self._open_until = None
        self._is_trying = False

    def failed(self, now: float, reason: str = "", *, opens_for_s: float = 0.0) -> None:
        """Count a failed call; with `opens_for_s` it opens at once and for that long: a hang."""
        self._last.append(False)
        self._in_a_row += 1
        was_trying, self._is_trying = self._is_trying, False
        if self.is_open(now):  # a call made before it opened; a burst must not lengthen the pause
            return
        if not (opens_for_s or was_trying or self._too_many()):
            return
        if was_trying:
            self._pause_s = min(2.0 * self._pause_s, self.settings.max_open_s)
        self._open_until = now + max(self._pause_s, opens_for_s)
        self._last.clear()
        self.num_openings += 1
        self.reason = reason

    def _too_many(self) -> bool:
        full = len(self._last) == self.settings.window
        share = self._last.count(False) / self.settings.window if full else 0.0
        return (
            self._in_a_row >= self.settings.max_failures or share >= self.settings.max_failed_frac
        )
