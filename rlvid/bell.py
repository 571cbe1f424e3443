"""A bell: whoever has news rings it, and the one thread that acts on news sleeps on it."""

from __future__ import annotations

import threading


class Bell:
    """Rung from any thread, waited for by one; a ring before the wait is not missed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_rung = False

    def ring(self) -> None:
        """Wake the waiter now, or spare it its next wait."""
        with self._changed:
            self._is_rung = True
            self._changed.notify()

    def wait(self, timeout_s: float) -> bool:
        """Return True when it was rung since the last wait, False after `timeout_s` without."""
        with self._changed:
            rung = self._changed.wait_for(lambda: self._is_rung, timeout_s)
            self._is_rung = False
            return rung
