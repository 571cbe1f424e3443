"""From the scores of a step to what is credited: curriculum, gates, running statistics, order.

Pure functions. The driver calls `aggregate` once a step; the learner then credits the result
(`advantages.credit`), which normalises each table in its groups and sums them with their weights.
Letters: P groups of a step, G rollouts in a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlvid.algorithms.running_stats import RunningStats, standardised, updated
from rlvid.algorithms.score_table import RewardTable, ScoreTable
from rlvid.config.aggregation import AggregationConfig, GateConfig, factor_at

State = Mapping[str, RunningStats]
"""Scorer to its running statistics; empty where the recipe has none."""

WEIGHTED_SUM = "weighted_sum"
LEXICOGRAPHIC = "lexicographic"


def aggregate(
    table: ScoreTable,
    weights: Mapping[str, float],
    config: AggregationConfig,
    *,
    step: int,
    state: State,
    min_std: float,
) -> tuple[RewardTable, State, dict[str, float]]:
    """Return what to credit, the new running statistics, and the weights in force.

    In this order: weights of the step, gates on the scores as given, running statistics of the
    gated scores, then `config.kind`. With the default section the tables pass through untouched.

    Args:
        weights: scorer to its weight in the recipe; scorers of weight 0 can only be gates.
        step: counted from 0.
        state: what the step before returned; {} at the first.
        min_std: `algorithm.advantage.min_std`; a running spread below it is none.
    """
    in_force = weights_at(weights, config, step)
    values = gated(table.values, config.gates)
    trained = {name: values[name] for name, weight in weights.items() if weight}
    if config.running is not None:
        momentum = config.running.momentum
        state = {
            name: updated(state.get(name, RunningStats()), scores, momentum)
            for name, scores in trained.items()
        }
        trained = {n: standardised(scores, state[n], min_std) for n, scores in trained.items()}
    active = {name: weight for name, weight in in_force.items() if weight}
    if config.kind == "weighted_sum":
        summed = torch.stack([w * trained[name].double() for name, w in active.items()]).sum(dim=0)
        credited, credit_weights = {WEIGHTED_SUM: summed}, {WEIGHTED_SUM: 1.0}
    elif config.kind == "lexicographic":
        signed = {name: trained[name] * (1.0 if w > 0 else -1.0) for name, w in active.items()}
        ranks = net_wins(signed, config.order, config.tolerance)
        credited, credit_weights = {LEXICOGRAPHIC: ranks}, {LEXICOGRAPHIC: 1.0}
    else:
        credited, credit_weights = {name: trained[name] for name in active}, active
    rewards = RewardTable(group_ids=table.group_ids, values=credited, weights=credit_weights)
    return rewards, state, in_force


def weights_at(
    weights: Mapping[str, float], config: AggregationConfig, step: int
) -> dict[str, float]:
    """Return the weights in force at `step`: weight times the curriculum's factor."""
    return {
        name: weight * factor_at(config.curriculum[name], step)
        if name in config.curriculum
        else weight
        for name, weight in weights.items()
    }


def gated(values: Mapping[str, Tensor], gates: Sequence[GateConfig]) -> dict[str, Tensor]:
    """Cap scores where a gate fails: min(score, cap) where gate < below, NaN where gate is missing.

    Every gate looks at the scores as given, and several caps of one score take the lowest; so the
    order of the gates does not matter. A cap of None is the lowest score of the rollout's group.

    Args:
        values: scorer to [P, G].
    """
    result = dict(values)
    for gate in gates:
        verdict = values[gate.scorer]
        fails, unknown = verdict < gate.below, verdict.isnan()
        for name, cap in gate.caps.items():
            given = values[name]
            limit = _lowest(given) if cap is None else torch.full_like(given, cap)
            capped = torch.where(fails, torch.minimum(result[name], limit), result[name])
            result[name] = torch.where(unknown, torch.nan, capped)
    return result


def _lowest(scores: Tensor) -> Tensor:
    """[P, G] -> the lowest known score of each group, at every rollout; inf without any."""
    known = torch.where(scores.isnan(), torch.inf, scores)
    return known.amin(dim=1, keepdim=True).expand_as(scores)


def net_wins(
    values: Mapping[str, Tensor], order: Sequence[str], tolerance: Mapping[str, float]
) -> Tensor:
    r"""Compare rollouts of a group pair by pair, the first scorer that differs deciding.

        c(i, j) = sign(s_k[i] - s_k[j])  for the first k of `order` with |s_k[i] - s_k[j]| > tol_k
        reward(i) = sum over j of c(i, j) / (number of rollouts compared - 1)

    Net wins (Copeland's method) and not a sort, since "equal within a tolerance" is not transitive;
    rounding to a grid would be, but a constant added to the scores would then change the order.

    Args:
        values: scorer to [P, G]; a rollout that lacks one of them takes no part.

    Returns:
        [P, G] float64 in [-1, 1], NaN where a score is missing; 0 for a rollout without opponents.
    """
    first = values[order[0]]
    missing = torch.stack([values[name].isnan() for name in order]).any(dim=0)
    verdict = torch.zeros(*first.shape, first.shape[1], dtype=torch.float64)
    for name in order:
        scores = values[name].double()
        difference = scores[:, :, None] - scores[:, None, :]
        decides = (difference.abs() > tolerance.get(name, 0.0)) & (verdict == 0)
        verdict = torch.where(decides, difference.sign(), verdict)
    compared = ~(missing[:, :, None] | missing[:, None, :])
    wins = torch.where(compared, verdict, 0.0).sum(dim=2)
    opponents = ((~missing).sum(dim=1, keepdim=True) - 1).clamp(min=1)
    return torch.where(missing, torch.nan, wins / opponents)
