"""Whether a batch may be trained in chunks, before all of its scores are there."""

from __future__ import annotations

from rlvid.algorithms import ALGORITHMS
from rlvid.config.aggregation import AggregationConfig
from rlvid.config.algorithm import AlgorithmConfig
from rlvid.plugins import resolve


def streams(algorithm: AlgorithmConfig, aggregation: AggregationConfig) -> bool:
    """Return whether the credit of a group depends on the scores of that group alone.

    Not so where advantages are divided by a spread over the batch (`advantage.std` global,
    max_group), where rollouts of the whole step are ranked (`selective_kl`), where rewards are
    standardised by running statistics that take the whole step in, or where an algorithm does not
    say `is_group_local = True`. Such batches are trained in one piece.
    """
    found = resolve(algorithm.use, ALGORITHMS, where="algorithm.use")
    is_group_local = bool(getattr(found, "is_group_local", False))
    per_group = algorithm.advantage.std in ("group", "none")
    is_ranked = algorithm.selective_kl is not None
    return is_group_local and per_group and not is_ranked and aggregation.running is None
