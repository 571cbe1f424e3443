"""A circuit breaker: stops asking a replica that fails, and tries it again with one request."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """When a replica is left alone, and for how long."""

    max_failures: int = 3
    """Failures in a row that open it; an answer slower than `slow_s` counts as one."""
    slow_s: float = 45.0
    open_s: float = 1.0
    """Until the first probe; doubles with every probe that fails."""
    max_open_s: float = 15.0


@dataclass(slots=True)
class Breaker:
    """closed --failures in a row--> open --time--> half-open --probe--> closed or open again."""

    settings: BreakerSettings = field(default_factory=BreakerSettings)
    clock: Callable[[], float] = time.monotonic
    num_failures: int = 0
    num_opened: int = 0
    """Times it went from closed to open."""
    _open_until: float | None = None
    _pause_s: float = 0.0
    _is_probing: bool = False

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        if self._open_until is None:
            return "closed"
        return "half-open" if self.clock() >= self._open_until else "open"

    @property
    def lets_through(self) -> bool:
        """Whether a request may go now; half open lets one through at a time."""
        return self.state == "closed" or (self.state == "half-open" and not self._is_probing)

    @property
    def wait_s(self) -> float:
        """Seconds until it may let one through."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - self.clock())

    def begin(self) -> None:
        """A request goes out."""
        self._is_probing = self.state == "half-open"

    def cancel(self) -> None:
        """It ended without saying anything of the replica."""
        self._is_probing = False

    def succeed(self, seconds: float) -> None:
        """It was answered after so many seconds."""
        if seconds > self.settings.slow_s:
            self.fail()
            return
        self._is_probing = False
        self.num_failures, self._open_until, self._pause_s = 0, None, 0.0

    def fail(self) -> None:
        """It failed, in a way that is the replica's doing."""
        self.num_failures += 1
        was_closed = self._open_until is None
        if was_closed and self.num_failures < self.settings.max_failures:
            return
        if not was_closed and not self._is_probing:
            return  # sent before it opened; one burst must not double the pause many times
        self._is_probing = False
        self.num_opened += was_closed
        doubled = max(self.settings.open_s, 2.0 * self._pause_s)
        self._pause_s = min(doubled, self.settings.max_open_s)
        self._open_until = self.clock() + self._pause_s
