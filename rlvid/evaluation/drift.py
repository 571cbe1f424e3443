"""Signs that a reward is gamed: judges that fall while it rises, and clips that leave the normal.

Pure functions; `monitor.py` holds what they need of the past.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlvid.evaluation.statistics import Interval, paired_bootstrap

Pair = tuple[str, int]
"""(prompt id, seed index) of a held-out clip."""
HeldOut = Mapping[str, Mapping[Pair, float]]
"""Scorer to its scores of held-out clips."""
MIN_SPREAD = 0.02
"""Smallest spread a guard is measured in; the over-exposure of a sound base is 0 in every clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A guard over the clips of the policy the phase began with."""

    mean: float
    std: float

    def limit(self, factor: float) -> float:
        """Return the mean over clips above which the guard alarms."""
        return self.mean + factor * max(self.std, MIN_SPREAD)


def base_of(values: Sequence[float]) -> Base:
    return Base(mean=statistics.fmean(values), std=statistics.pstdev(values))


def changes(
    first: HeldOut, now: HeldOut, *, confidence: float, num_bootstrap: int
) -> dict[str, Interval]:
    """Return now - first of every scorer, on the clips both have, whole prompts resampled.

    Scorers with fewer than two prompts in common are left out: their noise cannot be known.
    """
    found = {}
    for name in first:
        pairs = sorted(set(first[name]) & set(now.get(name, {})))
        if len({prompt_id for prompt_id, _ in pairs}) < 2:
            continue
        found[name] = paired_bootstrap(
            [first[name][pair] for pair in pairs],
            [now[name][pair] for pair in pairs],
            [prompt_id for prompt_id, _ in pairs],
            num_bootstrap=num_bootstrap,
            confidence=confidence,
        )
    return found


def fallen_judges(changed: Mapping[str, Interval], judges: Sequence[str]) -> list[str]:
    """Return the judges whose whole interval lies below 0."""
    return [name for name in judges if name in changed and changed[name].high < 0.0]


def risen_rewards(changed: Mapping[str, Interval], signs: Mapping[str, float]) -> list[str]:
    """Return what is trained on and whose mean rose.

    The mean and not its interval: the judge's fall is what must be beyond noise, and a reward that
    has hit its ceiling on a few prompts is no less suspicious.

    Args:
        signs: trained name to the sign of its weight; a negative one rises by falling.
    """
    return [
        name
        for name, sign in signs.items()
        if name in changed and sign * changed[name].mean_difference > 0.0
    ]


def standing(first: HeldOut, now: HeldOut, judges: Sequence[str]) -> float | None:
    """Return how the judges stand against the first evaluation; higher is better, 0 is equal.

    Mean over judges of the mean difference in units of the judge's spread over clips at first, so
    that no judge counts more for its scale. None when no judge scored.
    """
    parts = []
    for name in judges:
        pairs = sorted(set(first.get(name, {})) & set(now.get(name, {})))
        if pairs:
            before = [first[name][pair] for pair in pairs]
            difference = statistics.fmean(
                now[name][pair] - value for pair, value in zip(pairs, before, strict=True)
            )
            parts.append(difference / max(statistics.pstdev(before), 1e-6))
    return statistics.fmean(parts) if parts else None
