"""The interval of a mean over dimensions, each of which judges pairs of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rlvid.evaluation.statistics import CHUNK, Interval, check_settings, percentile_interval

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanOfMeans:
    """A mean over dimensions, before and after, with the interval of its change."""

    before: float
    after: float
    interval: Interval


def mean_of_means_bootstrap(
    tables: Iterable[Mapping[K, tuple[float, float]]],
    *,
    prompt_of: Callable[[K], Hashable],
    num_bootstrap: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> MeanOfMeans:
    """Return how the mean over tables of each table's own mean changes, with its interval.

    Whole prompts are resampled, in all tables together; a table that a resample leaves empty is
    left out of that resample. A pair wins when the mean of its differences is above zero.

    Args:
        tables: of each dimension (before, after) by pair; they need not have the same pairs.
        prompt_of: cluster of a pair.
    """
    check_settings(num_bootstrap, confidence)
    chosen = [dict(table) for table in tables]
    if not chosen or not all(chosen):
        raise ValueError("mean_of_means_bootstrap: expected tables with a pair each, got none")
    places = {prompt: i for i, prompt in enumerate({prompt_of(k): 0 for t in chosen for k in t})}
    if len(places) < 2:
        raise ValueError("mean_of_means_bootstrap: expected at least 2 prompts, got 1")
    sums, counts = np.zeros((2, len(chosen), len(places)))
    by_pair: dict[K, list[float]] = defaultdict(list)
    for row, table in enumerate(chosen):
        for pair, (first, second) in table.items():
            sums[row, places[prompt_of(pair)]] += second - first
            counts[row, places[prompt_of(pair)]] += 1
            by_pair[pair].append(second - first)
    means = _resampled(sums, counts, num_bootstrap, np.random.default_rng(seed))
    low, high = percentile_interval(means, confidence)
    both = np.array([np.mean(list(table.values()), axis=0) for table in chosen]).mean(axis=0)
    differences = np.array([np.mean(values) for values in by_pair.values()])
    interval = Interval(
        mean_difference=float(both[1] - both[0]),
        low=low,
        high=high,
        win_rate=float((differences > 0).mean() + 0.5 * (differences == 0).mean()),
        num_pairs=len(by_pair),
        confidence=confidence,
    )
    return MeanOfMeans(before=float(both[0]), after=float(both[1]), interval=interval)


def _resampled(
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    num_bootstrap: int,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """[tables, prompts] sums and counts of differences -> [num_bootstrap] means of means."""
    num_prompts = sums.shape[1]
    means = np.empty(num_bootstrap)
    for start in range(0, num_bootstrap, CHUNK):
        stop = min(start + CHUNK, num_bootstrap)
        even = np.full(num_prompts, 1.0 / num_prompts)
        weights = generator.multinomial(num_prompts, even, size=stop - start)
        total, number = weights @ sums.T, weights @ counts.T
        ratio = np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)
        means[start:stop] = np.nanmean(ratio, axis=1)
    return means
