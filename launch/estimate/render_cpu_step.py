"""`rlvid plan RECIPE --measure`: how long a step takes on the cores here, as text."""

from __future__ import annotations

from rlvid.config import Recipe
from rlvid.launch.estimate.cpu_rates import group_seconds, measure_rates
from rlvid.launch.estimate.cpu_step import cpu_step
from rlvid.launch.estimate.render import figure


def cpu_step_lines(recipe: Recipe) -> list[str]:
    """Measure the work of a group on this machine and return what a step takes.

    Raises:
        ValueError: the recipe has no RL phase, or one of its roles has a GPU.
    """
    if "grpo" not in recipe.phases:
        raise ValueError(
            f"--measure: a step of phase grpo is timed, got phases {', '.join(recipe.phases)}; "
            "leave it out"
        )
    rewards = recipe.rewards
    gpus = {
        "rollout.num_gpus": recipe.rollout.num_gpus,
        "rewards.decode_gpus": rewards.decode_gpus,
        "learner.num_gpus": recipe.learner.num_gpus,
    }
    for setting, number in gpus.items():
        if number:
            raise ValueError(
                f"--measure: cores are timed, got {setting} {number:g}; expected 0. Set it, or "
                "leave --measure out"
            )
    rates = measure_rates(recipe)
    step = cpu_step(recipe, group_seconds(recipe, rates), rates.num_cores)
    lines = [
        f"a step of grpo, timed on the cores here ({rates.num_cores}): {figure(step.step_s)} s; "
        f"busy: actors {figure(step.actors_s)} s, rewards {figure(step.rewards_s)} s, learner "
        f"{figure(step.learner_s)} s",
        "left out: starting, and what processes lose that take turns on a core",
    ]
    if rates.not_measured:
        lines.append(f"not timed, and not in it: the scorers {', '.join(rates.not_measured)}")
    return lines
