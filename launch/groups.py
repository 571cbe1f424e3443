"""From prompts to scored groups: the sample and score stages of the loop, and of evaluation.

Every group goes planned -> leased -> sampled -> scoring -> ready through the ledger. Finished
groups go to the reward pool one by one, so scoring hides behind the sampling of the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlvid.actors.pool import LostGroup, RolloutLostError, RolloutPool, SampledGroup
from rlvid.config import Recipe
from rlvid.flow.sigmas import shifted_sigmas
from rlvid.flow.step_plans import make_step_plan
from rlvid.launch.ledger import Ledger
from rlvid.records import GroupSummary, GroupTask, NoiseSettings, Prompt, StepPlan
from rlvid.rewards.pool import RewardPool
from rlvid.rewards.scoring import GroupScores
from rlvid.seeds import derive_seed

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""Longest single wait on a pool; deadlines are the pools' own."""
MAX_LEASES = 3
"""A group that cost this many actors stops the run instead of costing more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A group ready to be learned from; its tensors stay in the object store."""

    task: GroupTask
    group: Any
    """Object reference of the RolloutGroup."""
    summary: GroupSummary
    scores: GroupScores


def training_task(
    recipe: Recipe, prompt: Prompt, *, visit: int, step: int, position: int
) -> GroupTask:
    """Return the group of a prompt at its `visit`-th turn, a function of the recipe's seed only."""
    rollout = recipe.rollout
    plan = make_step_plan(rollout, recipe_seed=recipe.seed, prompt_id=prompt.prompt_id, step=step)
    indices = range(rollout.group_size)
    noises = [plan.noise_index(index, rollout.group_size) for index in indices]
    seed = recipe.seed
    return GroupTask(
        group_id=f"{step:06d}-{position:02d}",
        lease_id="",
        prompt=prompt,
        plan=plan,
        noise_seeds=tuple(
            derive_seed(seed, prompt.prompt_id, visit, noise, "noise") for noise in noises
        ),
        step_seeds=tuple(
            derive_seed(seed, prompt.prompt_id, visit, index, "step") for index in indices
        ),
        guidance_scale=rollout.guidance_scale,
    )


def pinned_task(
    recipe: Recipe, prompt: Prompt, *, label: str, position: int, num_seeds: int
) -> GroupTask:
    """Return a deterministic group: Euler steps, fixed seeds that no recipe seed moves."""
    evaluate = recipe.evaluate
    sigmas = shifted_sigmas(evaluate.num_denoising_steps, recipe.rollout.shift)
    plan = StepPlan(
        sigmas=sigmas,
        stochastic_steps=(),
        trained_steps=(),
        noise=NoiseSettings(schedule="flash", eta=0.0, truncation=0.45, first_sigma=sigmas[1]),
        num_noises=num_seeds,
    )
    seeds = tuple(derive_seed(0, prompt.prompt_id, "evaluate", index) for index in range(num_seeds))
    return GroupTask(
        group_id=f"{label}-{position:03d}",
        lease_id="",
        prompt=prompt,
        plan=plan,
        noise_seeds=seeds,
        step_seeds=seeds,
        guidance_scale=evaluate.guidance_scale or recipe.rollout.guidance_scale,
    )


def sample_and_score(
    tasks: Sequence[GroupTask],
    rollouts: RolloutPool,
    rewards: RewardPool,
    ledger: Ledger,
    *,
    step: int,
    lease_s: float,
    scorers: Sequence[str] | None = None,
    on_group: Callable[[ScoredGroup], None] = lambda group: None,
) -> list[ScoredGroup]:
    """Run tasks to the end and return them scored, in the order given, whatever order they ended.

    Args:
        scorers: labels of those that are asked; None asks all of the pool.

    Raises:
        RolloutLostError: a group lost `MAX_LEASES` actors, or an actor slot its budget.
        RewardError: a scorer broke its contract or the pool gave up.
    """
    by_id = {task.group_id: task for task in tasks}
    sampled: dict[Any, SampledGroup] = {}
    finished: dict[str, ScoredGroup] = {}
    for task in tasks:
        ledger.plan(task.group_id, step, task.prompt.prompt_id)
        _lease(task, rollouts, ledger, lease_s)
    while len(finished) < len(tasks):
        for answer in rollouts.collect(POLL_S):
            if isinstance(answer, LostGroup):
                _lease_again(by_id[answer.group_id], answer, rollouts, ledger, lease_s)
            elif ledger.sampled(
                answer.summary.group_id,
                answer.summary.lease_id,
                answer.summary.actor_id,
                answer.summary.policy_version,
            ):
                sampled[rewards.submit(answer.group, scorers)] = answer
                ledger.scoring(answer.summary.group_id)
            else:
                logger.warning("refused a late answer group=%s", answer.summary.group_id)
        wait_s = 0.0 if rollouts.num_outstanding else POLL_S
        for ticket, scores in rewards.collect(wait_s):
            done = sampled.pop(ticket)
            group_id = done.summary.group_id
            ledger.ready(group_id)
            finished[group_id] = ScoredGroup(
                task=by_id[group_id], group=done.group, summary=done.summary, scores=scores
            )
            on_group(finished[group_id])
    return [finished[task.group_id] for task in tasks]


def mean_rewards(
    scored: Sequence[ScoredGroup], weights: Mapping[str, float]
) -> dict[tuple[str, int], float]:
    """Return the weighted mean score of every rollout that no scorer missed, by (prompt id, index).

    The sum is divided by the magnitudes of the weights, so it keeps the scale of the scores.
    """
    total = sum(abs(weight) for weight in weights.values())
    result: dict[tuple[str, int], float] = {}
    for group in scored:
        parts: dict[int, dict[str, float]] = {}
        for score in group.scores.scores:
            if score.scorer in weights and score.value is not None:
                parts.setdefault(score.index, {})[score.scorer] = score.value
        for index, values in parts.items():
            if len(values) == len(weights):
                reward = sum(weights[name] * value for name, value in values.items()) / total
                result[group.task.prompt.prompt_id, index] = reward
    return result


def _lease(task: GroupTask, rollouts: RolloutPool, ledger: Ledger, lease_s: float) -> None:
    lease_id = ledger.lease(task.group_id, lease_s)
    rollouts.submit(replace(task, lease_id=lease_id))


def _lease_again(
    task: GroupTask, lost: LostGroup, rollouts: RolloutPool, ledger: Ledger, lease_s: float
) -> None:
    """Give a lost group out anew, with the same seeds."""
    ledger.expire(task.group_id)
    if ledger.num_leases(task.group_id) >= MAX_LEASES:
        raise RolloutLostError(
            f"rollout: group {task.group_id} (prompt {task.prompt.text!r}) lost {MAX_LEASES} "
            f"actors, the last one: {lost.reason}. Raise rollout.deadline_s if it is only slow."
        )
    logger.warning("leasing group=%s again reason=%s", task.group_id, lost.reason)
    _lease(task, rollouts, ledger, lease_s)
