"""From a recipe's `algorithm.use` to the algorithm, of whatever kind."""

from __future__ import annotations

from typing import Any

from rlvid.algorithms import ALGORITHMS
from rlvid.algorithms.base import Algorithm, ForwardAlgorithm
from rlvid.algorithms.refl import Refl
from rlvid.config.algorithm import AlgorithmConfig
from rlvid.plugins import resolve


def open_algorithm(config: AlgorithmConfig) -> Algorithm | ForwardAlgorithm | Refl:
    """Return the algorithm that the recipe names.

    Raises:
        ValueError: there is none of that name, or it is of no kind.
    """
    found: Any = resolve(config.use, ALGORITHMS, where="algorithm.use")
    algorithm = found()
    if isinstance(algorithm, ForwardAlgorithm | Algorithm | Refl):
        return algorithm
    raise ValueError(
        f"algorithm.use: {config.use} is no algorithm: expected the methods of "
        "rlvid.algorithms.base.Algorithm or ForwardAlgorithm, or a rlvid.algorithms.refl.Refl, got "
        f"{type(algorithm).__name__}"
    )
