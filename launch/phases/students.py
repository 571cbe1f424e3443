"""What the phases that train a policy do where it is a distilled student."""

from __future__ import annotations

from pathlib import Path

from rlvid.config import Recipe
from rlvid.config.students import check_student_rollouts, student_refusal
from rlvid.models.policy import Policy


def check_student_rl(recipe: Recipe, policy: Policy) -> None:
    """Raise ValueError where RL could not train the student that its rollouts are made by."""
    if policy.sampling is not None:
        is_causal = policy.sampling.layout is not None
        check_student_rollouts(recipe.rollout, is_causal=is_causal)


def refuse_student(policy: Policy, phase: str) -> None:
    """Raise ValueError where a phase would train a student as if it were none."""
    if policy.sampling is not None:
        raise ValueError(student_refusal(phase, policy.lora_path or policy.model_path))


def carry_sampling(base: Policy, trained: Policy | None) -> None:
    """Say of a policy that was trained from a student how it is sampled: as before."""
    if base.sampling is not None and trained is not None:
        base.sampling.save(Path(trained.lora_path or trained.model_path))
