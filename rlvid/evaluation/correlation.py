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
    joined = {name: np.concatenate([step[name] for step in steps]) for name in names}
    return [_pair(joined[one], joined[two], one, two) for one, two in combinations(names, 2)]


def _pair(one: Floats, two: Floats, first: str, second: str) -> Correlation:
    """Correlate [P, G] and [P, G]; groups are centred, or ranked and centred, on their own."""
    known = ~(np.isnan(one) | np.isnan(two))
    usable = known & (known.sum(axis=1, keepdims=True) >= 2)
    pooled_one, pooled_two = one[known], two[known]
    return Correlation(
        first=first,
        second=second,
        pearson=pearson(pooled_one, pooled_two),
        spearman=pearson(average_ranks(pooled_one), average_ranks(pooled_two)),
        pearson_in_group=pearson(centred(one, usable)[usable], centred(two, usable)[usable]),
        spearman_in_group=pearson(
            centred(group_ranks(one, usable), usable)[usable],
            centred(group_ranks(two, usable), usable)[usable],
        ),
        num_rollouts=int(known.sum()),
        num_groups=int(usable.any(axis=1).sum()),
    )


def centred(values: Floats, known: NDArray[np.bool_]) -> Floats:
    """Subtract from [P, G] the mean of each group's known values; 0 where not known."""
    held = np.where(known, values, 0.0)
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    mean = held.sum(axis=1, keepdims=True) / count
    return np.where(known, held - mean, 0.0)


def group_ranks(values: Floats, known: NDArray[np.bool_]) -> Floats:
    """Return each value's rank from 0 on among the known ones of its group, [P, G]; ties share."""
    mine, others = values[:, :, None], values[:, None, :]
    there = known[:, None, :]
    below, equal = ((mine > others) & there).sum(axis=2), ((mine == others) & there).sum(axis=2)
    return np.asarray(below + (equal - 1) / 2.0, dtype=np.float64)


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
        if name in step:
            known = ~np.isnan(step[name])
            deviation = centred(step[name], known)
            count = known.sum(axis=1)
            std = np.sqrt((deviation**2).sum(axis=1) / np.maximum(count, 1))
            found += int(((count >= 2) & (std >= min_std)).sum())
    return found
