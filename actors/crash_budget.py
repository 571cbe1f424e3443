"""How often actors may be lost, and how long a place stays empty after a loss."""

from __future__ import annotations

import random
from collections import deque

from rlvid.actors.fleet_records import RolloutLostError

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


class CrashBudget:
    """Losses of the whole role within a sliding window."""

    def __init__(self, per_actor: int, window_s: float) -> None:
        self._per_actor = per_actor
        self._window_s = window_s
        self._lost: deque[float] = deque()

    def spend(self, now: float, *, num_actors: int, actor_id: str, reason: str) -> None:
        """Note a loss.

        Raises:
            RolloutLostError: more were lost in the window than the recipe allows.
        """
        self._lost.append(now)
        while self._lost[0] < now - self._window_s:
            self._lost.popleft()
        allowed = self._per_actor * max(num_actors, 1)
        if len(self._lost) > allowed:
            raise RolloutLostError(
                f"rollout: {len(self._lost)} actors lost within {self._window_s:g} s, expected at "
                f"most {allowed} (rollout.crash_budget {self._per_actor} for each of "
                f"{num_actors}); the last one: {actor_id}: {reason}. Look at the actor's log in "
                "the Ray session folder, memory is the usual reason; then resume the run, or raise "
                "rollout.crash_budget where losses are expected"
            )


def pause_s(failures_in_a_row: int, draw: random.Random) -> float:
    """Return how long a place stays empty: nothing after one loss, then doubling, with jitter."""
    if failures_in_a_row <= 1:
        return 0.0
    longest = min(FIRST_PAUSE_S * 2.0 ** (failures_in_a_row - 2), LONGEST_PAUSE_S)
    return longest * draw.uniform(0.5, 1.0)
