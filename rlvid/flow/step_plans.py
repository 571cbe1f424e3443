"""Which denoising steps of a group are stochastic and which are trained."""

from __future__ import annotations

import math
import random

from rlvid.config.rollout import RolloutConfig
from rlvid.config.step_plan import StepPlanConfig
from rlvid.flow.sigmas import shifted_sigmas
from rlvid.records import NoiseSettings, StepPlan
from rlvid.seeds import derive_seed


def make_step_plan(
    config: RolloutConfig,
    *,
    recipe_seed: int,
    prompt_id: str,
    step: int,
    sigmas: tuple[float, ...] | None = None,
) -> StepPlan:
    """Return the plan of the group of `prompt_id` in optimiser step `step`.

    A pure function of its arguments, so every replica of a prompt agrees without a broadcast. The
    last denoising step is never stochastic: noise added there would stay in the video, and CPS has
    none there.

    Args:
        sigmas: the noise levels (`rlvid.models.noise_levels`); None shifts even ones by a number
            of `config.shift`.

    Raises:
        ValueError: settings under which no step could be trained, or there are no levels.
    """
    is_ode = config.step_plan.kind == "ode"
    if not is_ode:
        _check_noise(config)
    if sigmas is None:
        sigmas = _shifted_levels(config)
    rng = random.Random(derive_seed(recipe_seed, prompt_id, step, "step_plan"))
    stochastic, trained = _choose_steps(config, rng, step)
    is_tree = config.step_plan.kind == "tree"
    return StepPlan(
        sigmas=sigmas,
        stochastic_steps=stochastic,
        trained_steps=trained,
        noise=NoiseSettings(
            schedule=config.noise_schedule,
            eta=0.0 if is_ode else config.eta,
            truncation=config.truncation,
            first_sigma=sigmas[1],
        ),
        num_noises=_num_noises(config),
        num_nodes=_num_nodes(config, stochastic) if is_tree else (),
        branch_scale=config.step_plan.branch_scale if is_tree else None,
        own_steps=_own_steps(config, trained),
    )


def ode_plan(sigmas: tuple[float, ...], *, num_noises: int) -> StepPlan:
    """Return the plan of clips that are only sampled: Euler steps, no noise on the way."""
    return StepPlan(
        sigmas=sigmas,
        stochastic_steps=(),
        trained_steps=(),
        noise=NoiseSettings(schedule="flash", eta=0.0, truncation=0.45, first_sigma=sigmas[1]),
        num_noises=num_noises,
    )


def _shifted_levels(config: RolloutConfig) -> tuple[float, ...]:
    if config.shift is None:
        raise ValueError(
            "make_step_plan: rollout.shift is null, so the levels are the model's: expected "
            "`sigmas` of rlvid.models.noise_levels.sampling_sigmas, or a number as rollout.shift"
        )
    return shifted_sigmas(config.num_denoising_steps, config.shift)


def _num_noises(config: RolloutConfig) -> int:
    """Return the distinct initial noises of a group."""
    plan = config.step_plan
    if plan.kind == "branch":
        places = len(_branch_steps(config)) if plan.branch_at == "each" else 1
        return config.group_size // (plan.num_branches * places)
    if plan.kind == "tree":
        return int(config.group_size // plan.num_branches ** len(plan.split_steps))
    return 1 if config.initial_noise == "shared" else config.group_size


def _num_nodes(config: RolloutConfig, stochastic: tuple[int, ...]) -> tuple[int, ...]:
    """Return the distinct states of a tree after each stochastic step."""
    plan, roots = config.step_plan, _num_noises(config)
    splits = [sum(split <= j for split in plan.split_steps) for j in stochastic]
    return tuple(int(roots * plan.num_branches**number) for number in splits)


def _own_steps(config: RolloutConfig, trained: tuple[int, ...]) -> tuple[int, ...]:
    """Return the step of each rollout: for each noise every step in turn, for each its branches."""
    plan = config.step_plan
    if plan.branch_at == "drawn":
        return ()
    of_one_noise = tuple(step for step in trained for _ in range(plan.num_branches))
    return of_one_noise * _num_noises(config)


def _branch_steps(config: RolloutConfig) -> tuple[int, ...]:
    """Return the steps at each of which a trajectory branches; ValueError where G does not fit."""
    plan = config.step_plan
    steps = _steps_in_range(plan, config.num_denoising_steps)
    rollouts = plan.num_branches * len(steps)
    if config.group_size % rollouts:
        raise ValueError(
            f"rollout.group_size: expected a multiple of {rollouts}, step_plan.num_branches "
            f"{plan.num_branches} at each of {len(steps)} steps of range_frac {plan.range_frac}, "
            f"got {config.group_size}"
        )
    return steps


def _check_noise(config: RolloutConfig) -> None:
    if config.num_denoising_steps < 2:
        raise ValueError(
            "rollout.num_denoising_steps: too few to train: expected at least 2 (the last step is "
            f"deterministic), got {config.num_denoising_steps}"
        )
    if config.eta == 0.0:
        raise ValueError(
            "rollout.eta: no exploration: expected a positive number, got 0. At 0 all rollouts of "
            "one noise are equal and have no probability."
        )
    if config.noise_schedule == "cps" and config.eta > 1.0:
        raise ValueError(f"rollout.eta: too large for cps: expected at most 1, got {config.eta}")


def _choose_steps(
    config: RolloutConfig, rng: random.Random, step: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (stochastic, trained) step indices, ascending."""
    plan = config.step_plan
    if plan.kind == "ode":
        return (), ()
    every = tuple(range(config.num_denoising_steps - 1))
    if plan.kind == "all":
        return every, every
    if plan.kind == "fraction":
        # DanceGRPO samples with noise everywhere and trains a random part of the steps.
        count = max(1, math.floor(plan.fraction * len(every) + 1e-9))
        return every, tuple(sorted(rng.sample(every, count)))
    if plan.kind == "tree":
        return _tree_steps(config, every, step)
    if plan.branch_at == "each":
        steps = _branch_steps(config)
        return steps, steps
    eligible = _steps_in_range(plan, config.num_denoising_steps)
    if plan.kind in ("isotemporal", "branch"):
        chosen: tuple[int, ...] = (rng.choice(eligible),)
        return chosen, chosen
    if plan.num_steps > len(eligible):
        raise ValueError(
            f"rollout.step_plan.num_steps: more than there are: expected at most {len(eligible)} "
            f"(steps of range_frac {plan.range_frac}, the last one excluded), got {plan.num_steps}"
        )
    if plan.kind == "random":
        chosen = tuple(sorted(rng.sample(eligible, plan.num_steps)))
        return chosen, chosen
    chosen = _window(plan, eligible, step)
    return chosen, chosen


def _window(plan: StepPlanConfig, steps: tuple[int, ...], step: int) -> tuple[int, ...]:
    """Return MixGRPO's progressive window (arXiv:2507.21802); past the end it starts over."""
    num_places = len(steps) - plan.num_steps + 1
    begin = step // plan.window_every * plan.window_stride % num_places
    return steps[begin : begin + plan.num_steps]


def _tree_steps(
    config: RolloutConfig, every: tuple[int, ...], step: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (stochastic, trained) steps of a tree.

    Steps ahead of which nothing has branched are not trained: a single state has no rival. Pruned
    are a few steps behind the last split, a window that moves towards it. In BranchGRPO's released
    code it moves on to the split itself and a step ahead of it; here splits are always trained, as
    rewards may be fused by their probabilities.
    """
    plan = config.step_plan
    last = plan.split_steps[-1]
    stochastic = every
    if plan.between != "sde":
        window = _window(plan, every, step) if plan.between == "window" else ()
        stochastic = tuple(sorted({*plan.split_steps, *window}))
    has_rivals = _num_noises(config) > 1
    trained = tuple(j for j in stochastic if has_rivals or j >= plan.split_steps[0])
    prunable = [j for j in trained if j > last]
    moved = step // plan.window_every * plan.window_stride
    begin = max(len(prunable) - plan.pruned_steps - moved, 0)
    pruned = prunable[begin : begin + plan.pruned_steps]
    return stochastic, tuple(j for j in trained if j not in pruned)


def _steps_in_range(plan: StepPlanConfig, num_denoising_steps: int) -> tuple[int, ...]:
    """Step indices whose start lies in `range_frac` of the schedule, without the last step."""
    low, high = plan.range_frac
    # The 1e-9 keeps 0.3 * 10 from counting as 2.9999 or 3.0001.
    start = math.ceil(low * num_denoising_steps - 1e-9)
    stop = min(math.ceil(high * num_denoising_steps - 1e-9), num_denoising_steps - 1)
    if start >= stop:
        raise ValueError(
            f"rollout.step_plan.range_frac: holds no step that can be stochastic: got {low}, "
            f"{high} of {num_denoising_steps} denoising steps, the last one excluded. Widen it."
        )
    return tuple(range(start, stop))
