"""Phases that train, given a distilled student."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvid.launch.phases.students import carry_sampling, check_student_rl, refuse_student
from rlvid.learners.testing import tiny_recipe
from rlvid.models.causal_layout import BlockLayout
from rlvid.models.policy import Policy
from rlvid.models.student import StudentSampling

FEW_STEP = StudentSampling(sigmas=(1.0, 0.5))
CAUSAL = StudentSampling(sigmas=(1.0, 0.5), layout=BlockLayout(frames_per_block=1))


def policy(folder: Path, sampling: StudentSampling | None = None) -> Policy:
    folder.mkdir()
    if sampling is not None:
        sampling.save(folder)
    return Policy(model_path=str(folder))


def test_rl_takes_a_few_step_student_sampled_as_it_is(tmp_path: Path) -> None:
    few_step = policy(tmp_path / "few_step", FEW_STEP)
    forward = tiny_recipe(
        rollout={
            "step_plan": {"kind": "ode"},
            "initial_noise": "independent",
            "guidance_scale": 1.0,
        },
        algorithm={"use": "nft"},
    )
    check_student_rl(forward, few_step)
    check_student_rl(tiny_recipe(), policy(tmp_path / "plain"))
    with pytest.raises(ValueError, match="expected step_plan.kind ode and guidance_scale 1.0, got"):
        check_student_rl(tiny_recipe(), few_step)
    with pytest.raises(ValueError, match="got a causal student"):
        check_student_rl(forward, policy(tmp_path / "causal", CAUSAL))


def test_a_policy_trained_from_a_student_is_sampled_as_one(tmp_path: Path) -> None:
    few_step, trained = policy(tmp_path / "few_step", FEW_STEP), policy(tmp_path / "trained")
    carry_sampling(few_step, trained)
    carry_sampling(few_step, None)
    assert trained.sampling == FEW_STEP
    plain = policy(tmp_path / "plain")
    carry_sampling(plain, other := policy(tmp_path / "other"))
    assert other.sampling is None


def test_a_student_is_not_distilled_or_fine_tuned(tmp_path: Path) -> None:
    refuse_student(policy(tmp_path / "plain"), "sft")
    with pytest.raises(ValueError, match="Put sft before distillation"):
        refuse_student(policy(tmp_path / "few_step", FEW_STEP), "sft")
