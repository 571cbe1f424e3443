"""How many replicas a scorer should have, from the length of its queue."""

from __future__ import annotations

from dataclasses import dataclass

GROW_ABOVE_BATCHES = 2.0
"""Batches waiting for each replica above which one more is worth its start."""
GROW_AFTER_S = 2.0
"""Seconds the queue must stay that long; a burst of one step is gone sooner than a start."""
SHRINK_AFTER_S = 30.0
"""Seconds without a queue and with an idle replica after which one goes."""


@dataclass(slots=True)
class Autoscaler:
    """Keeps a wish between bounds; time comes from the caller."""

    low: int
    high: int
    batch_size: int
    _long_since: float | None = None
    _idle_since: float | None = None

    def wanted(self, now: float, *, queued: int, num_replicas: int, num_busy: int) -> int:
        """Return the number of replicas to have now.

        Args:
            queued: clips that wait.
            num_replicas: there are, those that are starting included.
            num_busy: of them that work.
        """
        if not self.low <= num_replicas <= self.high:
            return min(max(num_replicas, self.low), self.high)
        is_long = queued > GROW_ABOVE_BATCHES * self.batch_size * num_replicas
        is_idle = not queued and num_busy < num_replicas
        self._long_since = _since(self._long_since, is_long, now)
        self._idle_since = _since(self._idle_since, is_idle, now)
        if self._long_since is not None and now - self._long_since >= GROW_AFTER_S:
            self._long_since = None
            return min(num_replicas + 1, self.high)
        if self._idle_since is not None and now - self._idle_since >= SHRINK_AFTER_S:
            self._idle_since = None
            return max(num_replicas - 1, self.low)
        return num_replicas


def _since(before: float | None, holds: bool, now: float) -> float | None:
    """Return since when a condition has held without a break; None when it does not hold."""
    if not holds:
        return None
    return now if before is None else before
