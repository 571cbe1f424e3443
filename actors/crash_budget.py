"""How often actors may be lost, and how long a place stays empty after a loss."""

from __future__ import annotations

import random
from collections import deque

from rlvid.actors.fleet_records import RolloutLostError

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


class CrashBudget:
    """Losses of the whole role: within a sliding window, and of starts with none that came off."""

    def __init__(self, per_actor: int, window_s: float) -> None:
        self._per_actor = per_actor
        self._window_s = window_s
        self._lost: deque[float] = deque()
        self._num_starts_lost = 0
        """Since an actor last became ready; a slow start is lost too seldom for the window."""

    def became_ready(self) -> None:
        """An actor started."""
        self._num_starts_lost = 0

    def spend(
        self, now: float, *, num_actors: int, actor_id: str, reason: str, was_starting: bool
    ) -> None:
        """Note a loss.

        Raises:
            RolloutLostError: more were lost than the recipe allows.
        """
        self._lost.append(now)
        self._num_starts_lost += was_starting
        while self._lost[0] < now - self._window_s:
            self._lost.popleft()
        allowed = self._per_actor * max(num_actors, 1)
        if max(len(self._lost), self._num_starts_lost) <= allowed:
            return
        what = f"{len(self._lost)} actors lost within {self._window_s:g} s"
        if self._num_starts_lost > allowed:
            what = f"{self._num_starts_lost} actors lost while they started and none that did"
        raise RolloutLostError(
            f"rollout: {what}, expected at most {allowed} (rollout.crash_budget "
            f"{self._per_actor} for each of {num_actors}); the last one: {actor_id}: {reason}. "
            "Look at the actor's log in the Ray session folder, memory is the usual reason; then "
            "resume the run, or raise rollout.crash_budget where losses are expected"
        )


def pause_s(failures_in_a_row: int, draw: random.Random) -> float:
    """Return how long a place stays empty: nothing after one loss, then doubling, with jitter."""
    if failures_in_a_row <= 1:
        return 0.0
    longest = min(FIRST_PAUSE_S * 2.0 ** (failures_in_a_row - 2), LONGEST_PAUSE_S)
    return longest * draw.uniform(0.5, 1.0)
