"""What `rlvid plan` says a step of distillation costs, against what torch counts of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rlvid.config import Recipe
from rlvid.config.distillation import StageName
from rlvid.launch.estimate.assumptions import Assumptions
from rlvid.launch.estimate.phases import estimate
from rlvid.launch.planner import plan
from rlvid.learners.distill import distill_settings
from rlvid.learners.workers import open_learner
from rlvid.models.policy import Policy

STEP = {"num_steps": 1, "batch_size": 2}
CONSISTENCY = {**STEP, "method": "consistency", "consistency": {"num_clips": 4}}
GAN = {**STEP, "ema": None, "gan": {"weight": 1.0, "num_clips": 4}}


@pytest.mark.parametrize(
    ("stage", "sections"),
    [
        ("few_step", {"stages": ["few_step"], "few_step": GAN}),
        ("causal_init", {"causal_init": CONSISTENCY}),
    ],
)
def test_planned_flops_are_what_torch_counts(
    stage: StageName, sections: dict[str, Any], tmp_path: Path
) -> None:
    """One step of the shipped model, which updates student and fake score; one level, so that
    the random exit is the planned one."""
    base = {
        "student_steps": [1.0],
        "causal": {"frames_per_block": 1},
        "checkpoint": {"every": 2},
        "learner": {"mode": "full", "zero_stage": 0},
    }
    recipe = Recipe.model_validate(
        {"name": "r", "phases": ["distillation"], "distillation": {**base, **sections}}
    )
    (found,) = estimate(recipe, plan(recipe), Assumptions())
    planned = sum(
        work.flops or 0.0
        for work, _ in found.work
        if work.what.startswith(f"{stage}:") and not work.what.endswith(("clips", "motion"))
    )
    policy = Policy(model_path="tiny")
    learner = open_learner(distill_settings(recipe, stage, policy, policy, tmp_path))
    if stage == "few_step":
        learner.monitor.measure = dict  # the plan has it in lines of its own
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        learner.train_steps(0, 1)
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.03)
