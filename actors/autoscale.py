"""How many rollout actors a run should have, from who waits for whom. Pure; time is the caller's.

    learner waits and groups wait for an actor     more actors, a quarter at a time
    actors wait and the learner does not           fewer
    both wait                                      the rewards hold the run up: leave it
    neither                                        balanced: leave it

A change is made when the shares said the same over a whole cooldown, and then not again before the
next is over. Between the two targets nothing happens, so a number that was just changed is not
changed back by noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlvid.config.elasticity import AutoscaleConfig

STEP_FRAC = 0.25
"""Of the present actors, added or removed at once; at least one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What was seen since the last decision."""

    num_actors: int
    """Wanted now."""
    num_ready: int
    """Of them that work; while others still start, what they will do is not known."""
    queued_frac: float
    """Share of the time in which groups waited for an actor."""
    rollout_idle_frac: float
    """Share of the actors' time that they had nothing to do."""
    learner_idle_frac: float


def wanted_actors(config: AutoscaleConfig, load: Load) -> int:
    """Return the number of actors to have from now on."""
    num = load.num_actors
    if not config.min_actors <= num <= config.max_actors:
        return min(max(num, config.min_actors), config.max_actors)
    change = max(1, int(num * STEP_FRAC))
    learner_waits = load.learner_idle_frac > config.learner_idle_frac
    # While none is ready, none waits for work either: they are still loading.
    actors_wait = load.num_ready > 0 and load.rollout_idle_frac > config.rollout_idle_frac
    may_grow = load.num_ready >= num and load.queued_frac > 0.5
    if learner_waits and not actors_wait and may_grow:
        return min(num + change, config.max_actors)
    if actors_wait and not learner_waits:
        return max(num - change, config.min_actors)
    return num
