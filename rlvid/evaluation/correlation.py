"""How the scorers of a run agree: Pearson and Spearman, over all rollouts and inside groups.

Only the second kind bears on what is learned: a group-relative advantage never sees what differs
between prompts. Letters: P groups, G rollouts in a group, N rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scores = Mapping[str, Floats]
"""Scorer to [P, G] of one step, NaN where missing."""
MIN_STD = 1e-9
"""Below it a spread is rounding residue of float32 scores of order 1."""
MIN_DEGREES = 20
"""Fisher's interval is too narrow for fewer: two rollouts always correlate by 1 or -1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """Two scorers over a window of steps; NaN where one of them has no spread."""

    first: str
    second: str
    pearson: float
    spearman: float
    pearson_in_group: float
    spearman_in_group: float
    num_rollouts: int
    """That both scored."""
    num_groups: int
    """With at least two of them."""

    @property
    def name(self) -> str:
        return f"{self.first}~{self.second}"

    def metrics(self) -> dict[str, float]:
        """Return the finite ones under the names of the metrics table."""
        kinds = ("pearson", "spearman", "pearson_in_group", "spearman_in_group")
        values = {kind: float(getattr(self, kind)) for kind in kinds}
        return {
            f"correlation/{self.name}/{kind}": value
            for kind, value in values.items()
            if math.isfinite(value)
        }


def correlations(steps: Sequence[Scores]) -> list[Correlation]:
    """Return every pair of the scorers that all steps have."""
    if not steps:
        return []
    names = [name for name in steps[0] if all(name in step for step in steps)]
    return [_pair(steps, first, second) for first, second in combinations(names, 2)]


def _pair(steps: Sequence[Scores], first: str, second: str) -> Correlation:
    """Groups are centred, or ranked and centred, on their own; then all are taken together."""
    raw: list[Floats] = []
    centred: list[Floats] = []
    ranked: list[Floats] = []
    for step in steps:
        for one, two in zip(step[first], step[second], strict=True):
            known = ~(np.isnan(one) | np.isnan(two))
            both = np.stack([one[known], two[known]])
            raw.append(both)
            if both.shape[1] >= 2:
                centred.append(both - both.mean(axis=1, keepdims=True))
                ranks = np.stack([average_ranks(row) for row in both])
                ranked.append(ranks - ranks.mean(axis=1, keepdims=True))
    pooled = np.concatenate(raw, axis=1)
    pooled_ranks = np.stack([average_ranks(row) for row in pooled])
    empty = np.empty((2, 0))
    return Correlation(
        first=first,
        second=second,
        pearson=pearson(*pooled),
        spearman=pearson(*pooled_ranks),
        pearson_in_group=pearson(*np.concatenate(centred or [empty], axis=1)),
        spearman_in_group=pearson(*np.concatenate(ranked or [empty], axis=1)),
        num_rollouts=pooled.shape[1],
        num_groups=len(centred),
    )


def pearson(one: Floats, two: Floats) -> float:
    """Return the product-moment correlation of [N] values; NaN without spread in either."""
    if one.size < 2:
        return math.nan
    if min(float(one.std()), float(two.std())) < MIN_STD:
        return math.nan
    one, two = one - one.mean(), two - two.mean()
    return float((one * two).sum()) / math.sqrt(float((one**2).sum()) * float((two**2).sum()))


def average_ranks(values: Floats) -> Floats:
    """Return ranks from 0 on; equal values share the mean of theirs, as Spearman's rho asks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: Floats = last - (counts + 1) / 2.0
    return means[places]


def upper_limit(correlation: float, degrees: int, z: float = 2.576) -> float:
    """Return the upper end of Fisher's interval of a correlation: tanh(atanh(r) + z / sqrt(d - 1)).

    Args:
        degrees: rollouts less one for each group that was centred; with fewer than `MIN_DEGREES`
            the limit is 1.
        z: 2.576 leaves 0.5 % above.
    """
    if degrees < MIN_DEGREES or not math.isfinite(correlation):
        return 1.0
    bounded = max(-0.999999, min(0.999999, correlation))
    return math.tanh(math.atanh(bounded) + z / math.sqrt(degrees - 1))


def groups_with_spread(steps: Sequence[Scores], name: str, min_std: float) -> int:
    """Return in how many groups of the window the scorer tells rollouts apart."""
    found = 0
    for step in steps:
        for row in step.get(name, np.empty((0, 0))):
            known = row[~np.isnan(row)]
            found += int(known.size >= 2 and float(known.std()) >= min_std)
    return found
