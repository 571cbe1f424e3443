"""Whether the `algorithm` section fits the sections beside it."""

from __future__ import annotations

from collections.abc import Mapping

from rlvid.config.aggregation import AggregationConfig
from rlvid.config.algorithm import READ_BY, AlgorithmConfig, ReflConfig
from rlvid.config.base import refuse_unread
from rlvid.config.learner import LearnerConfig
from rlvid.config.phases import GrpoConfig
from rlvid.config.rollout import RolloutConfig
from rlvid.config.tree import TreeConfig, check_branching


def check_selective(
    algorithm: AlgorithmConfig, weights: Mapping[str, float], aggregation: AggregationConfig
) -> None:
    """Raise ValueError where selective KL has no rewards to compare.

    Args:
        weights: label of each scorer to its weight.
    """
    if algorithm.selective_kl is None:
        return
    main, known = algorithm.selective_kl.main, sorted(name for name in weights if weights[name])
    if main not in known or len(known) < 2:
        raise ValueError(
            "algorithm.selective_kl.main: compares a scorer with the others: expected one of two "
            f"or more scorers with weight, got {main!r} and {known}"
        )
    if aggregation.kind != "normalise_then_sum" or aggregation.curriculum:
        raise ValueError(
            "algorithm.selective_kl: compares every scorer with weight at every step: expected "
            "rewards.aggregation.kind normalise_then_sum, which keeps them apart, and no "
            f"curriculum, got {aggregation.kind} and {sorted(aggregation.curriculum)}"
        )


def check_rollouts(algorithm: AlgorithmConfig, rollout: RolloutConfig) -> None:
    """Raise ValueError where the rollouts are not what the engine can learn from.

    A plug-in is asked when the learner opens it.
    """
    kind, scale = rollout.step_plan.kind, rollout.guidance_scale
    if algorithm.use == "grpo" and kind == "ode":
        raise ValueError(
            "algorithm.use: grpo trains stochastic denoising steps, and rollout.step_plan.kind ode "
            "has none; set another kind, or algorithm.use to nft, awm, dpo or refl, which look at "
            "final videos alone and take any kind"
        )
    if algorithm.use == "nft" and scale != 1.0:
        raise ValueError(
            "algorithm.use: nft samples and trains without guidance (arXiv:2509.16117, section "
            f"3.3): expected rollout.guidance_scale 1.0, got {scale:g}; evaluate.guidance_scale is "
            "free"
        )
    if algorithm.use != "grpo" and algorithm.use in READ_BY:
        _check_sampling(algorithm.use, rollout)
    if algorithm.use == "refl":
        _check_refl(algorithm.refl, rollout)
    if kind not in ("tree", "branch") and algorithm.tree != TreeConfig():
        raise ValueError(
            f"algorithm.tree: is of rollout.step_plan.kind tree and branch, got kind {kind}; leave "
            "it out, or set the kind"
        )
    if algorithm.use == "grpo":
        check_branching(algorithm.tree, algorithm.advantage.best_of_n, rollout)


def check_replay(algorithm: AlgorithmConfig, learner: LearnerConfig, grpo: GrpoConfig) -> None:
    """Raise ValueError where settings of the replay are set, and nothing is replayed."""
    if algorithm.use != "grpo" and algorithm.use in READ_BY:
        why = f"by algorithm.use {algorithm.use}, which looks at final videos, but by grpo"
        refuse_unread(learner, ("replay",), why, where="learner.")
        refuse_unread(grpo, ("max_replay_drift_frac",), why, where="grpo.")


def _check_sampling(engine: str, rollout: RolloutConfig) -> None:
    """Refuse what an engine without trained denoising steps neither reads nor could measure."""
    refuse_unread(
        rollout.step_plan,
        ("fraction", "pruned_steps"),
        f"by algorithm.use {engine}, which trains no denoising step, but by grpo",
        where="rollout.step_plan.",
    )
    if not rollout.inference.samples_exactly:
        raise ValueError(
            f"rollout.inference: must sample exactly where algorithm.use is {engine}, got "
            f"{rollout.inference.describe()!r}: no step is trained whose replay drift the learner "
            "could measure. Leave out what is not exact"
        )


def _check_refl(refl: ReflConfig, rollout: RolloutConfig) -> None:
    if refl.start == "noise" and rollout.initial_noise == "shared":
        raise ValueError(
            "algorithm.refl.start: noise begins from the initial noise of each rollout, and "
            "rollout.initial_noise shared gives a group one: expected independent, with a "
            "step_plan.kind other than branch and tree"
        )
    # The 1e-9 keeps 0.3 * 10 from counting as 2.9999.
    first, end = (int(share * rollout.num_denoising_steps + 1e-9) for share in refl.exit_frac)
    if not first < end or refl.num_gradient_steps > first + 1:
        raise ValueError(
            f"algorithm.refl: exit_frac {refl.exit_frac} of {rollout.num_denoising_steps} "
            f"denoising steps are steps {first} up to {end} (excluded): expected at least one, and "
            f"at most {first + 1} num_gradient_steps, got {refl.num_gradient_steps}"
        )
