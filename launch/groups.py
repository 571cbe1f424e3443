"""The groups of training and of evaluation: what is sampled, and what comes back scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlvid.config import Recipe
from rlvid.flow.step_plans import make_step_plan, ode_plan
from rlvid.launch.loop.schedule import training_group_id
from rlvid.models.noise_levels import sampling_sigmas
from rlvid.records import GroupSummary, GroupTask, Prompt
from rlvid.rewards.scoring import GroupScores
from rlvid.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A group ready to be learned from; its tensors stay in the object store."""

    task: GroupTask
    group: Any
    """Object reference of the RolloutGroup."""
    summary: GroupSummary
    scores: GroupScores


def recipe_sigmas(recipe: Recipe, num_steps: int) -> tuple[float, ...]:
    """Return the num_steps + 1 noise levels that the recipe's model is sampled with.

    Raises:
        ValueError: `rollout.shift` does not go with the model.
    """
    return sampling_sigmas(recipe.rollout.shift, recipe.model, num_steps)


def training_task(
    recipe: Recipe, prompt: Prompt, *, visit: int, step: int, position: int
) -> GroupTask:
    """Return the group of a prompt at its `visit`-th turn, a function of the recipe's seed only."""
    rollout = recipe.rollout
    plan = make_step_plan(
        rollout,
        recipe_seed=recipe.seed,
        prompt_id=prompt.prompt_id,
        step=step,
        sigmas=recipe_sigmas(recipe, rollout.num_denoising_steps),
    )
    indices = range(rollout.group_size)
    noises = [plan.noise_index(index, rollout.group_size) for index in indices]
    seed = recipe.seed
    return GroupTask(
        group_id=training_group_id(step, position),
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
    sigmas = recipe_sigmas(recipe, evaluate.num_denoising_steps)
    plan = ode_plan(sigmas, num_noises=num_seeds)
    seeds = tuple(derive_seed(0, prompt.prompt_id, "evaluate", index) for index in range(num_seeds))
    return GroupTask(
        group_id=f"{label}-{position:03d}",
        lease_id="",
        prompt=prompt,
        plan=plan,
        noise_seeds=seeds,
        step_seeds=seeds,
        guidance_scale=evaluate.guidance_scale or recipe.rollout.guidance_scale,
        is_pinned=True,
    )


def mean_rewards(
    scored: Sequence[ScoredGroup], weights: Mapping[str, float]
) -> dict[tuple[str, int], float]:
    """Return the reward of every rollout that no scorer missed, by (prompt id, index)."""
    result: dict[tuple[str, int], float] = {}
    for group in scored:
        parts: dict[int, dict[str, float]] = {}
        for score in group.scores.scores:
            if score.scorer in weights and score.value is not None:
                parts.setdefault(score.index, {})[score.scorer] = score.value
        for index, values in parts.items():
            reward = weighted_reward(values, weights)
            if reward is not None:
                result[group.task.prompt.prompt_id, index] = reward
    return result


def weighted_reward(scores: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    """Return the weighted mean of a rollout's scores; None where one that counts is missing.

    The sum is divided by the magnitudes of the weights, so it keeps the scale of the scores.
    """
    if any(name not in scores for name in weights):
        return None
    total = sum(abs(weight) for weight in weights.values())
    return sum(weight * scores[name] for name, weight in weights.items()) / total
