"""The cost of distillation against counts of forwards by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.config import ModelConfig, Recipe
from rlvid.launch.estimate.assumptions import Assumptions
from rlvid.launch.estimate.phases import PhaseEstimate, estimate
from rlvid.launch.memory import distillation_memory
from rlvid.launch.model_size import read_clip_flops, read_model_size, read_row_flops
from rlvid.launch.planner import plan
from rlvid.observability.flops import RowFlops

BASE: dict[str, Any] = {
    "student_steps": (1.0, 0.75, 0.5, 0.25),
    "causal": {"frames_per_block": 1},
    "few_step": {"num_steps": 100, "batch_size": 8},
    "self_forcing": {"num_steps": 100, "batch_size": 8},
    "causal_teacher": {"num_steps": 30, "batch_size": 4, "num_clips": 50},
    "causal_init": {"num_steps": 20, "batch_size": 2, "num_denoising_steps": 48},
    "monitor": {"num_prompts": 3},
    "checkpoint": {"every": 40, "keep": 2},
    "learner": {"mode": "full", "num_ranks": 4, "num_gpus": 1.0, "zero_stage": 2},
}


def recipe(**distillation: Any) -> Recipe:
    tree = {"name": "r", "phases": ("distillation",), "distillation": {**BASE, **distillation}}
    return Recipe.model_validate(tree)


def phase_of(chosen: Recipe) -> PhaseEstimate:
    (found,) = estimate(chosen, plan(chosen), Assumptions())
    return found


def amounts(chosen: Recipe) -> dict[str, float]:
    """FLOPs of each kind; two trainings of a stage are added up."""
    found: dict[str, float] = {}
    for work, _ in phase_of(chosen).work:
        assert work.flops is not None
        found[work.what] = found.get(work.what, 0.0) + work.flops
    return found


def row_of() -> RowFlops:
    row = read_row_flops(ModelConfig())
    assert row is not None
    return row


def test_distribution_matching_of_a_few_step_student() -> None:
    """100 updates of the fake score, 20 of the student, of 8 clips; 4 levels, 2.5 on average.

    The student's own last forward is counted with its backward. 3 checkpoints of 3 clips, and as
    many of the teacher's of 20 guided steps.
    """
    work, forward = amounts(recipe(stages=("few_step",))), row_of().forward
    assert work["few_step: simulate the student"] == (800 * 2.5 + 160 * 1.5) * forward
    assert work["few_step: real and fake score"] == 160 * (2 + 1) * forward
    assert work["few_step: train"] == (800 + 160) * 3 * forward
    assert work["few_step: watch motion"] == (9 * 4 + 3 * 20 * 2) * forward
    decode = read_clip_flops(ModelConfig()).decode
    assert decode is not None
    assert work["few_step: decode for motion"] == 12 * decode
    assert len(work) == 5


def test_gan_term_adds_real_rows_and_the_clips_gradient() -> None:
    plain = recipe(stages=("few_step",))
    gan = {"weight": 5e-3, "num_clips": 50}
    chosen = recipe(stages=("few_step",), few_step={**BASE["few_step"], "gan": gan})
    before, after, clip = amounts(plain), amounts(chosen), read_clip_flops(ModelConfig())
    assert clip.encode is not None
    added = after["few_step: train"] - before["few_step: train"]
    assert added == (800 * 3 + 160 * 2) * row_of().forward
    assert after["few_step: encode clips"] == 50 * clip.encode
    latents = 4 * read_model_size(ModelConfig(), chosen.distillation.learner).latent_numbers
    more = phase_of(chosen).disk_bytes - phase_of(plain).disk_bytes
    assert more == 50 * latents


def test_causal_forwards_leave_out_the_future() -> None:
    """5 blocks see 1 + 2 + ... + 5 of 25 pairs; beside 4 clean ones the pairs are 25 again."""
    row, chosen = row_of(), recipe()
    work = amounts(chosen)
    forced = 3 * (1.8 * (row.linear + row.entry + row.head) + row.text + row.attention)
    assert work["causal_teacher: train"] == pytest.approx(30 * 4 * forced)
    assert work["causal_init: train"] == pytest.approx(20 * 2 * forced)
    causal = row.forward - 0.4 * row.attention
    append = 0.8 * (row.linear + row.entry + row.head) + row.text + 0.4 * row.attention
    asked = 20 * 2 * 2 * (48 * causal + append)
    assert work["causal_init: teacher"] == pytest.approx(asked)
    simulated = (800 * 2.5 + 160 * 1.5) * causal + 960 * append
    assert work["self_forcing: simulate the student"] == pytest.approx(simulated)


def test_consistency_asks_the_teacher_for_a_step() -> None:
    """A guided step beside clean blocks and the target, where ode walks 48 of them."""
    row = row_of()
    init = {**BASE["causal_init"], "method": "consistency", "consistency": {"num_clips": 30}}
    work = amounts(recipe(causal_init=init))
    forced = 1.8 * (row.linear + row.entry + row.head) + row.text + row.attention
    assert work["causal_init: teacher"] == pytest.approx(20 * 2 * 3 * forced)
    assert "causal_init: encode clips" in work
    few = {**init, "teacher": "bidirectional_student"}
    stages = ("few_step", "causal_init")
    work = amounts(recipe(stages=stages, causal_init=few))
    asked = 20 * 2 * (4 * row.forward + row.forward + forced)
    assert work["causal_init: teacher"] == pytest.approx(asked)
    assert "causal_init: encode clips" not in work


def test_stages_come_one_after_the_other_on_the_ranks() -> None:
    phase = phase_of(recipe())
    assert phase.hours == pytest.approx(phase.gpu_hours / 4)
    assert phase.num_gpus == 4


def test_memory_of_consistency_is_that_of_a_third_transformer() -> None:
    stages = ("causal_teacher", "causal_init")
    ode = recipe(stages=stages)
    init = {**BASE["causal_init"], "method": "consistency"}
    consistency = recipe(stages=stages, causal_init=init)
    size = read_model_size(ModelConfig(), ode.distillation.learner)
    before, after = (distillation_memory(chosen, size) for chosen in (ode, consistency))
    added = after["weights"] - before["weights"]
    assert added == pytest.approx(4 * size.transformer_parameters / 2**20)
    assert after["EMA"] == pytest.approx(size.trainable_parameters / 2**20)
    assert before["EMA"] == 0.0
