"""What the phases that train a policy do where it is a distilled student."""

from __future__ import annotations

from pathlib import Path

from rlvid.config import Recipe
from rlvid.models.policy import Policy


def check_student_rl(recipe: Recipe, policy: Policy) -> None:
    """Raise ValueError where RL could not train the student that its rollouts are made by.

    Rollouts of a student are its own few steps, without guidance, so only an engine that looks at
    final videos can learn from them; and the learner's forward is bidirectional.
    """
    sampling = policy.sampling
    if sampling is None:
        return
    if sampling.layout is not None:
        raise ValueError(
            "phases: grpo after distillation got a causal student, whose velocity the RL learner "
            "does not compute: expected a student of stage few_step. Put grpo before distillation, "
            "or end distillation.stages with few_step"
        )
    rollout = recipe.rollout
    if rollout.step_plan.kind != "ode" or rollout.guidance_scale != 1.0:
        raise ValueError(
            "rollout: a distilled student is sampled at its own levels without guidance: expected "
            "step_plan.kind ode and guidance_scale 1.0, got "
            f"{rollout.step_plan.kind} and {rollout.guidance_scale:g}; with algorithm.use nft, awm "
            "or dpo, which look at final videos alone"
        )


def refuse_student(policy: Policy, phase: str) -> None:
    """Raise ValueError where a phase would train a student as if it were none."""
    if policy.sampling is not None:
        raise ValueError(
            f"phases: {phase} got a distilled student ({policy.lora_path or policy.model_path}), "
            "which it would not leave one: expected a policy that is sampled in many steps. Put "
            f"{phase} before distillation"
        )


def carry_sampling(base: Policy, trained: Policy | None) -> None:
    """Say of a policy that was trained from a student how it is sampled: as before."""
    if base.sampling is not None and trained is not None:
        base.sampling.save(Path(trained.lora_path or trained.model_path))
