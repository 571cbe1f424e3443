"""The planner's figures of the RL phase beside those of a finished run's metrics.

Seconds are of a role's own work in a step: its FLOPs over the GPU's peak at the assumed
utilisation, on the devices that it has, against the median of what its processes were busy. Memory
is the worst process of each: of its GPU, or of all its RAM without one. What a scorer computes the
planner knows of judges behind a server only, and their MFU nobody measures.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlvid.config import Recipe
from rlvid.config.rewards import ScorerConfig
from rlvid.launch.estimate.assumptions import Assumptions
from rlvid.launch.estimate.phases import held_by
from rlvid.launch.estimate.records import ACTORS, DECODER, LEARNER, Work, count_model
from rlvid.launch.estimate.sharing import Held, shared_devices, usable_devices
from rlvid.launch.estimate.training import grpo_work
from rlvid.launch.planner import plan
from rlvid.launch.role_plan import RolePlan
from rlvid.observability.mfu import PEAK_BF16
from rlvid.observability.plan_section import PlanRow

logger = logging.getLogger(__name__)

LEARNER_PEAK = "learner/devices/peak_tflops"
ALIKE = 1e-3
"""Relative; a sum over ranks is divided again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Role:
    """Where a role of the plan is found in the work, the plan and the metrics."""

    work: str
    plan: str
    """What its name in the plan starts with."""
    busy_s: str
    peak_mb: str
    mfu: str


ROLES = (
    _Role(
        work=ACTORS,
        plan="rollout actor",
        busy_s="time/rollout_actors/seconds",
        peak_mb="rollout/memory/peak_mb",
        mfu="mfu/rollout/frac",
    ),
    _Role(
        work=DECODER,
        plan="rewards: decoder",
        busy_s="reward_pool/decode/seconds",
        peak_mb="reward_pool/memory/peak_mb",
        mfu="mfu/decoder/frac",
    ),
    _Role(
        work=LEARNER,
        plan="learner rank",
        busy_s="time/learner_busy/seconds",
        peak_mb="learner/memory/peak_mb",
        mfu="mfu/learner/frac",
    ),
)


def plan_rows(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> list[PlanRow]:
    """Return a row for each role of the RL phase and each scorer of which something was measured.

    None where the phase took no step, or its transformer cannot be counted. A run that is over is
    not refused for what only its plan needs.

    Args:
        rows: of metrics.jsonl.
    """
    steps = [row["metrics"] for row in rows if "time/step/seconds" in row["metrics"]]
    if "grpo" not in recipe.phases or not steps:
        return []
    gpu = _gpu(recipe, steps)
    assumed = Assumptions() if gpu is None else Assumptions(gpu=gpu)
    try:
        counted = count_model(recipe, assumed)
        roles = [role for role in plan(recipe).roles if "grpo" in role.phases]
    except (ValueError, OSError) as error:
        logger.warning("report: without the table of what was planned: %s", error)
        return []
    if counted is None:
        return []
    works = {item.role: item for item in grpo_work(recipe, counted)}
    shared = shared_devices(
        Held(num_processes=role.num_processes, num_gpus=role.num_gpus) for role in roles
    )
    needs_s = {
        name: None if gpu is None else _needs_s(recipe, work, shared, peak=assumed.peak)
        for name, work in works.items()
    }
    found = []
    for role in ROLES:
        own = next((one for one in roles if one.role.startswith(role.plan)), None)
        if own is not None:
            found.append(_row(recipe, role, own, steps, works[role.work], needs_s[role.work]))
    found += [_scorer_row(recipe, s, roles, steps, works, needs_s) for s in recipe.rewards.scorers]
    return [row for row in found if row.is_measured]


def _needs_s(recipe: Recipe, work: Work, num_shared: int, *, peak: float) -> float | None:
    """Return the seconds of a role's work in a step, on GPUs of this many FLOP/s."""
    devices = usable_devices(held_by(recipe, "grpo", work.role), num_shared)
    if not devices or work.flops is None:
        return None
    return work.flops / recipe.grpo.num_steps / (peak * work.mfu * devices)


def _row(
    recipe: Recipe,
    role: _Role,
    planned: RolePlan,
    steps: Sequence[Mapping[str, float]],
    work: Work,
    planned_s: float | None,
) -> PlanRow:
    busy_s = _median(steps, role.busy_s)
    # Ranks work at the same time; of the others the metric is a sum.
    per = 1 if role.work == LEARNER else held_by(recipe, "grpo", role.work).num_processes
    return PlanRow(
        role=role.plan,
        planned_s=planned_s,
        measured_s=None if busy_s is None else busy_s / per,
        assumed_mfu=work.mfu,
        reached_mfu=_median(steps, role.mfu),
        planned_mib=_planned_mib(planned),
        measured_mib=max((s[role.peak_mb] for s in steps if role.peak_mb in s), default=None),
    )


def _scorer_row(
    recipe: Recipe,
    scorer: ScorerConfig,
    roles: Sequence[RolePlan],
    steps: Sequence[Mapping[str, float]],
    works: Mapping[str, Work],
    needs_s: Mapping[str, float | None],
) -> PlanRow:
    """Return the row of a scorer. Planned is the work of a server that no other scorer asks."""
    name = f"rewards/{scorer.label}"
    busy_s, replicas = _median(steps, f"{name}/busy_s"), _median(steps, f"{name}/replicas")
    is_alone = sum(other.server == scorer.server for other in recipe.rewards.scorers) == 1
    work = works.get(scorer.server) if scorer.server and is_alone else None
    own = next((role for role in roles if role.role == f"rewards: {scorer.label}"), None)
    return PlanRow(
        role=f"rewards: {scorer.label}",
        planned_s=None if work is None else needs_s[work.role],
        measured_s=None if busy_s is None else busy_s / max(replicas or 1.0, 1.0),
        assumed_mfu=None if work is None else work.mfu,
        reached_mfu=_median(steps, f"{name}/mfu_frac"),
        planned_mib=None if own is None else _planned_mib(own),
        measured_mib=None,
        is_counted=False,
    )


def _planned_mib(role: RolePlan) -> float:
    return role.total_mib if role.num_gpus else role.host_total_mib


def _median(steps: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [step[name] for step in steps if name in step]
    return statistics.median(values) if values else None


def _gpu(recipe: Recipe, steps: Sequence[Mapping[str, float]]) -> str | None:
    """Return a GPU with the peak of the learner's; None where its ranks had none that is known."""
    total = steps[-1].get(LEARNER_PEAK)
    if total is None:
        return None
    each = total / recipe.learner.num_ranks
    return next((n for n, peak in PEAK_BF16.items() if abs(peak / each - 1.0) < ALIKE), None)
