"""Intervals for what an evaluation claims: paired differences and the power to tell two sets apart.

Letters: N pairs, M clusters, R bootstrap resamples, P positives, Q negatives.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CHUNK = 1000
"""Resamples drawn at a time, which bounds the memory to CHUNK * N numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A paired difference with its bootstrap interval."""

    mean_difference: float
    """after - before, in the units of the score."""
    low: float
    high: float
    win_rate: float
    """Share of pairs in which `after` is higher; a tie counts half."""
    num_pairs: int
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Auc:
    """Area under the ROC curve with its bootstrap interval."""

    value: float
    """Probability that a random positive scores above a random negative; a tie counts half."""
    low: float
    high: float


def paired_bootstrap(
    before: ArrayLike,
    after: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    num_bootstrap: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return mean(after - before) with its percentile interval (Efron, 1979).

    Pairs that share a prompt are not independent: give the prompt ids as `groups` and whole
    prompts are resampled (cluster bootstrap), which keeps the interval honest.

    Args:
        before, after: [N] scores of the same prompts and seeds.
        groups: [N] the cluster each pair belongs to; None resamples single pairs.
    """
    first, second = finite_vector(before, "before"), finite_vector(after, "after")
    if first.shape != second.shape:
        raise ValueError(
            f"paired_bootstrap: before has {first.size} scores and after has {second.size}; "
            "pairs need one of each"
        )
    check_settings(num_bootstrap, confidence)
    difference = second - first
    sums, counts = cluster_sums(difference, groups)
    if sums.size < 2:
        raise ValueError(
            f"paired_bootstrap: expected at least 2 independent pairs or prompts, got {sums.size}"
        )
    generator = np.random.default_rng(seed)
    means = np.empty(num_bootstrap)
    for start in range(0, num_bootstrap, CHUNK):
        stop = min(start + CHUNK, num_bootstrap)
        drawn = generator.integers(0, sums.size, size=(stop - start, sums.size))
        means[start:stop] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = percentile_interval(means, confidence)
    return Interval(
        mean_difference=float(difference.mean()),
        low=low,
        high=high,
        win_rate=float((difference > 0).mean() + 0.5 * (difference == 0).mean()),
        num_pairs=int(difference.size),
        confidence=confidence,
    )


def mean_interval(
    values: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    num_bootstrap: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return the mean of the values and its percentile interval; whole groups are resampled.

    One group alone has no interval: its mean is returned three times.
    """
    numbers = finite_vector(values, "values")
    sums, _ = cluster_sums(numbers, groups)
    if sums.size < 2:
        check_settings(num_bootstrap, confidence)
        mean = float(numbers.mean())
        return mean, mean, mean
    found = paired_bootstrap(
        np.zeros_like(numbers),
        numbers,
        groups,
        num_bootstrap=num_bootstrap,
        confidence=confidence,
        seed=seed,
    )
    return found.mean_difference, found.low, found.high


def auc(
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    num_bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Auc:
    """Return P(positive > negative) + P(tie) / 2 with its percentile interval.

    This is the Mann-Whitney statistic over P * Q (Hanley and McNeil, 1982); both sets are
    resampled independently.

    Args:
        positive: [P] scores that should be the higher ones.
        negative: [Q] scores that should be the lower ones.
    """
    high_side, low_side = finite_vector(positive, "positive"), finite_vector(negative, "negative")
    check_settings(num_bootstrap, confidence)
    order = high_side[:, None] - low_side[None, :]
    wins = (order > 0) + 0.5 * (order == 0)
    num_positive, num_negative = wins.shape
    generator = np.random.default_rng(seed)
    uniform = np.full(num_positive, 1.0 / num_positive), np.full(num_negative, 1.0 / num_negative)
    positive_counts = generator.multinomial(num_positive, uniform[0], size=num_bootstrap)
    negative_counts = generator.multinomial(num_negative, uniform[1], size=num_bootstrap)
    resampled = ((positive_counts @ wins) * negative_counts).sum(axis=1) / wins.size
    low, high = percentile_interval(resampled, confidence)
    return Auc(value=float(wins.mean()), low=low, high=high)


def cluster_sums(
    values: NDArray[np.float64], groups: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (sum [M], count [M]) of the values of each cluster; single values without groups."""
    if groups is None:
        return values, np.ones_like(values)
    if len(groups) != values.size:
        raise ValueError(f"groups: expected {values.size} entries, one a pair, got {len(groups)}")
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    index = np.array([places[group] for group in groups])
    sums = np.bincount(index, weights=values, minlength=len(places)).astype(np.float64)
    counts = np.bincount(index, minlength=len(places)).astype(np.float64)
    return sums, counts


def percentile_interval(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Return the central interval that holds `confidence` of the values."""
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)


def finite_vector(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return the values as [N] float64; empty, nested or non-finite values are errors."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected a list of numbers, got shape {array.shape}")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(f"{name}: {bad} of {array.size} scores are not finite; mask them first")
    return array


def check_settings(num_bootstrap: int, confidence: float) -> None:
    """Raise ValueError when the bootstrap cannot be run like this."""
    if num_bootstrap < 1:
        raise ValueError(f"num_bootstrap: expected at least 1, got {num_bootstrap}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
