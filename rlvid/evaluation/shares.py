"""What share of a whole is left of it, with its interval: of a reward gain, of a motion.

Letters: N clips, M prompts, R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rlvid.evaluation.statistics import (
    CHUNK,
    check_settings,
    cluster_sums,
    finite_vector,
    percentile_interval,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A ratio of two means over the same clips."""

    value: float
    low: float
    high: float
    num_pairs: int


def share_of(
    part: ArrayLike,
    whole: ArrayLike,
    groups: Sequence[Hashable],
    *,
    num_bootstrap: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Share | None:
    """Return mean(part) / mean(whole) with its percentile interval; whole groups are resampled.

    Both means move together in a resample, since what is hard in one is hard in the other.

    Args:
        part, whole: [N], e.g. reward gains of a student and of its teacher on the same clips.
        groups: [N] prompt of each clip.

    Returns:
        None where the whole is not surely above 0: its mean is not, or more resamples than the
        lower tail of the interval holds have none. A share of what may be nothing says nothing.
    """
    above, below = finite_vector(part, "part"), finite_vector(whole, "whole")
    if above.shape != below.shape:
        raise ValueError(f"share_of: part has {above.size} clips and whole {below.size}")
    check_settings(num_bootstrap, confidence)
    if below.mean() <= 0.0:
        return None
    tops, _ = cluster_sums(above, groups)
    bottoms, _ = cluster_sums(below, groups)
    if tops.size < 2:
        raise ValueError(f"share_of: expected at least 2 prompts, got {tops.size}")
    generator = np.random.default_rng(seed)
    ratios = np.full(num_bootstrap, np.nan)
    for start in range(0, num_bootstrap, CHUNK):
        stop = min(start + CHUNK, num_bootstrap)
        drawn = generator.integers(0, tops.size, size=(stop - start, tops.size))
        top, bottom = tops[drawn].sum(axis=1), bottoms[drawn].sum(axis=1)
        np.divide(top, bottom, out=ratios[start:stop], where=bottom > 0.0)
    if np.isnan(ratios).mean() > 0.5 * (1.0 - confidence):
        return None
    low, high = percentile_interval(ratios[~np.isnan(ratios)], confidence)
    return Share(
        value=float(above.mean() / below.mean()), low=low, high=high, num_pairs=int(above.size)
    )
