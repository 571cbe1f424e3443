"""The row of metrics a GRPO step writes, by the names of the metrics table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rlvid.config import Recipe
from rlvid.launch.groups import ScoredGroup, mean_rewards
from rlvid.observability.mfu import TERA
from rlvid.records import StepReport, WeightsManifest


def step_metrics(
    recipe: Recipe,
    scored: Sequence[ScoredGroup],
    report: StepReport,
    manifest: WeightsManifest,
    *,
    weights: Mapping[str, float],
    num_lost: int,
    seconds: Mapping[str, float],
    pool: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, float]:
    """Return rollout, reward, learner, weights and time metrics of one step.

    Args:
        weights: scorer to its weight in force, which a curriculum moves; the reward in the row is
            by the recipe's own weights, so that one step can be compared with another.
        num_lost: actors lost in the step.
        seconds: wall time by stage.
        pool: what the reward pool counted in the step.
    """
    fixed = {s.label: s.weight for s in recipe.rewards.scorers if s.weight}
    # Group by group: a small prompt set may have a prompt twice in a step.
    rewards = [list(mean_rewards([group], fixed).values()) for group in scored]
    staleness = [report.step - group.summary.policy_version for group in scored]
    sample_s = sum(group.summary.sample_s for group in scored)
    score_s = sum(group.scores.decode_s + group.scores.score_s for group in scored)
    return {
        **pool,
        **_scorer_metrics(scored),
        **_flop_metrics(scored),
        **_reward_metrics(rewards),
        **{f"rewards/{name}/weight": weights[name] for name in fixed},
        "rollout/groups/consumed": float(len(report.trained_group_ids)),
        "rollout/groups/uniform": float(len(report.dropped_group_ids)),
        # A step may have lost all of its groups to quarantined prompts.
        "rollout/staleness/mean": statistics.fmean(staleness or [0]),
        "rollout/staleness/max": float(max(staleness, default=0)),
        "rollout/forwards/count": float(sum(group.summary.num_forwards for group in scored)),
        "rollout/clips/count": float(sum(len(group.task.step_seeds) for group in scored)),
        "rollout/actors/lost": float(num_lost),
        **_memory_metrics(scored),
        "weights/version/value": float(manifest.version),
        "weights/publish/mb": sum(bucket.num_bytes for bucket in manifest.buckets) / 2**20,
        "time/rollout_actors/seconds": sample_s,
        "time/reward_pool/seconds": score_s,
        **{f"time/{name}/seconds": value for name, value in seconds.items()},
        **report.metrics,
    }


def _memory_metrics(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    """Return the most memory that an actor of these groups had held; none where nobody looked."""
    most = max((group.summary.peak_mib for group in scored), default=0.0)
    return {"rollout/memory/peak_mb": most} if most else {}


def _flop_metrics(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    """Return the TFLOPs of each scorer whose are known for all that it scored of these groups."""
    found: dict[str, float] = {}
    for name in {score.scorer for group in scored for score in group.scores.scores}:
        asked = [g.scores for g in scored if any(s.scorer == name for s in g.scores.scores)]
        total = sum(scores.flops.get(name, math.nan) for scores in asked)
        if total > 0.0:  # neither unknown, which is NaN, nor all of it scored before
            found[f"rewards/{name}/tflop"] = total / TERA
    return found


def _reward_metrics(by_group: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the metrics of the rewards of each group; none where every score is missing."""
    rewards = [reward for group in by_group for reward in group]
    if not rewards:
        return {}
    spreads = [statistics.pstdev(group) for group in by_group if len(group) > 1]
    return {
        "rollout/reward/mean": statistics.fmean(rewards),
        "rollout/reward/std": statistics.pstdev(rewards),
        "rollout/reward/min": min(rewards),
        "rollout/reward/max": max(rewards),
        **({"rollout/reward/group_std": statistics.fmean(spreads)} if spreads else {}),
    }


def _scorer_metrics(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    missing: dict[str, int] = {}
    for group in scored:
        for score in group.scores.scores:
            values.setdefault(score.scorer, [])
            missing.setdefault(score.scorer, 0)
            if score.value is None:
                missing[score.scorer] += 1
            else:
                values[score.scorer].append(score.value)
    metrics: dict[str, float] = {}
    for name, found in values.items():
        total = len(found) + missing[name]
        metrics[f"rewards/{name}/missing_frac"] = missing[name] / total
        if found:
            metrics[f"rewards/{name}/mean"] = statistics.fmean(found)
            metrics[f"rewards/{name}/std"] = statistics.pstdev(found)
    return metrics
