"""Distance between two sets of feature vectors, each taken for a Gaussian.

Letters: N and M vectors of D numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def frechet_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), in squared units of a feature.

    The measure behind FID (arXiv:1706.08500, equation 6) and FVD (arXiv:1812.01717). Few vectors
    make it larger: compare sets of one size only.

    Args:
        first: [N, D] features.
        second: [M, D] features.

    Raises:
        ValueError: other shapes, fewer than two vectors, or numbers that are not finite.
    """
    one, other = _vectors(first, "first"), _vectors(second, "second")
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            f"frechet_distance: expected features of one length, got {one.shape[1]} and "
            f"{other.shape[1]}; take both from the same network"
        )
    covariance, other_covariance = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    covariance, other_covariance = np.atleast_2d(covariance), np.atleast_2d(other_covariance)
    values, axes = np.linalg.eigh(covariance)
    root = (axes * np.sqrt(np.maximum(values, 0.0))) @ axes.T
    inner = np.linalg.eigvalsh(root @ other_covariance @ root)
    shift = one.mean(axis=0) - other.mean(axis=0)
    spread = np.trace(covariance) + np.trace(other_covariance)
    return float(shift @ shift + spread - 2.0 * np.sqrt(np.maximum(inner, 0.0)).sum())


def _vectors(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or len(array) < 2 or not array.shape[1]:
        raise ValueError(
            f"frechet_distance: {name}: expected [N, D] with at least 2 vectors, got {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"frechet_distance: {name}: some numbers are not finite; mask them first")
    return array
