"""What may come after the phase `distillation`: a student is sampled in a few steps of its own."""

from __future__ import annotations

from collections.abc import Sequence

from rlvid.config.distillation import DistillationConfig
from rlvid.config.rollout import RolloutConfig


def check_after_distillation(
    phases: Sequence[str], distillation: DistillationConfig, rollout: RolloutConfig
) -> None:
    """Raise ValueError where a phase would be given a student that it cannot train.

    A plug-in phase may hand on anything, so what follows one is checked when it is run.
    """
    is_student = False
    for phase in phases:
        if ":" in phase:
            return
        if is_student and phase == "grpo":
            check_student_rollouts(rollout, is_causal=distillation.stages[-1] != "few_step")
        if is_student and phase in ("sft", "dpo", "distillation"):
            raise ValueError(student_refusal(phase, "of the phase distillation"))
        if phase in ("tiny_base", "distillation"):
            is_student = phase == "distillation"


def check_student_rollouts(rollout: RolloutConfig, *, is_causal: bool) -> None:
    """Raise ValueError where RL could not train the student that its rollouts are made by.

    Rollouts of a student are its own few steps, without guidance, so only an engine that looks at
    final videos can learn from them; and the learner's forward is bidirectional.
    """
    if is_causal:
        raise ValueError(
            "phases: grpo after distillation got a causal student, whose velocity the RL learner "
            "does not compute: expected a student of stage few_step. Put grpo before distillation, "
            "or end distillation.stages with few_step"
        )
    if rollout.step_plan.kind != "ode" or rollout.guidance_scale != 1.0:
        raise ValueError(
            "rollout: a distilled student is sampled at its own levels without guidance: expected "
            "step_plan.kind ode and guidance_scale 1.0, got "
            f"{rollout.step_plan.kind} and {rollout.guidance_scale:g}; with algorithm.use nft, awm "
            "or dpo, which look at final videos alone"
        )


def student_refusal(phase: str, which: str) -> str:
    """Return why a phase does not train a student as if it were none."""
    return (
        f"phases: {phase} got a distilled student ({which}), which it would not leave one: "
        f"expected a policy that is sampled in many steps. Put {phase} before distillation"
    )
