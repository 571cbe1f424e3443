"""The cost of training on stored pairs against values worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.config import ModelConfig, Recipe
from rlvid.launch.estimate.assumptions import Assumptions
from rlvid.launch.estimate.phases import PhaseEstimate, estimate
from rlvid.launch.memory import MIB, dpo_memory
from rlvid.launch.model_size import read_clip_flops, read_model_size, read_row_flops
from rlvid.launch.planner import plan

DPO: dict[str, Any] = {
    "pairs": "artifact:dataset",
    "num_steps": 10,
    "batch_size": 5,
    "forward": {"num_noise_levels": 3},
    "learner": {"mode": "full", "num_ranks": 2, "num_gpus": 1.0, "zero_stage": 2},
}
RANKS = {**DPO["learner"], "num_ranks": 4, "ema": {}}


def recipe(**sections: Any) -> Recipe:
    engine = {"prompts": {"num_prompts": 4}, "clips_per_prompt": 5}
    tree = {"name": "r", "phases": ("data_engine", "dpo"), "data_engine": engine, "dpo": DPO}
    return Recipe.model_validate({**tree, **sections})


def phase_of(chosen: Recipe) -> PhaseEstimate:
    found = estimate(chosen, plan(chosen), Assumptions())
    return next(phase for phase in found if phase.phase == "dpo")


def amounts(chosen: Recipe) -> dict[str, float | None]:
    return {work.what: work.flops for work, _ in phase_of(chosen).work}


def test_steps_by_hand() -> None:
    """5 pairs on 2 ranks are 6, one of which only fills up; each is 2 clips at 3 noise levels.

    A forward of the reference, a forward and a backward of the policy, and the caption for both.
    """
    row, clip = read_row_flops(ModelConfig()), read_clip_flops(ModelConfig())
    assert row is not None
    work = amounts(recipe())
    assert work["reference"] == 10 * 6 * 2 * 3 * row.forward
    assert work["train"] == 10 * 6 * 2 * 3 * 3 * row.forward
    assert work["encode captions"] == 10 * 6 * 2 * clip.text
    assert len(work) == 3


def test_a_pair_in_several_forwards_asks_for_its_caption_again() -> None:
    """6 rows, of which 4 fit into a forward of at most 5: pairs stay whole, so two forwards."""
    cut = recipe(dpo={**DPO, "learner": {**DPO["learner"], "micro_batch_rows": 5}})
    clip = read_clip_flops(ModelConfig())
    assert amounts(cut)["encode captions"] == 10 * 6 * 2 * 2 * clip.text
    assert amounts(cut)["train"] == amounts(recipe())["train"]


@pytest.mark.parametrize(
    ("clips", "max_pairs", "said"),
    [(5, 1, "at least 12.50 epochs"), (5, None, "at least 6.25"), (3, 2, "at least 12.50")],
)
def test_epochs_of_the_pairs_that_the_run_makes(
    clips: int, max_pairs: int | None, said: str
) -> None:
    """50 pairs are seen, of 4 prompts: the best of 5 clips against the worst, or 2 such pairs."""
    engine = {"prompts": {"num_prompts": 4}, "clips_per_prompt": clips}
    dpo = {**DPO, "objective": {"max_pairs": max_pairs}}
    assert said in phase_of(recipe(data_engine=engine, dpo=dpo)).work[1][0].amount
    elsewhere = recipe(dpo={**dpo, "pairs": "/a/folder"})
    assert "epochs" not in phase_of(elsewhere).work[1][0].amount


def test_hours_are_of_the_phases_own_ranks() -> None:
    phase = phase_of(recipe(learner={"num_gpus": 4.0}))
    assert phase.num_gpus == 2
    assert phase.hours == pytest.approx(phase.gpu_hours / 2)
    assert phase.gpu_hours > 0


def test_disk_of_checkpoints_and_policies() -> None:
    """2 checkpoints and the one being written, 16 bytes a parameter with the average; 2 policies.

    An adapter is small: rank 16 on 4 square projections of two attentions of every layer.
    """
    size = read_model_size(ModelConfig(), recipe().dpo.learner)
    trained, pipeline = size.transformer_parameters, size.text_encoder_parameters
    pipeline += trained + size.vae_parameters
    found = phase_of(recipe(dpo={**DPO, "learner": RANKS})).disk_bytes
    assert found == 3 * 16 * trained + 2 * 4 * pipeline
    lora = phase_of(recipe(dpo={**DPO, "learner": {}})).disk_bytes
    assert lora == (3 * 12 + 4) * size.num_layers * 2 * 4 * 16 * 2 * size.width


def test_memory_of_a_rank_by_hand() -> None:
    """ZeRO 2 over 4 ranks; reference and VAE whole; 2 rows of a level, 6 of all three."""
    chosen = recipe(dpo={**DPO, "learner": RANKS})
    size = read_model_size(chosen.model, chosen.dpo.learner)
    memory, trained = dpo_memory(chosen, size), size.transformer_parameters
    weights = 4 * (2 * trained + size.text_encoder_parameters + size.vae_parameters)
    assert memory["weights"] == pytest.approx(weights / MIB)
    assert memory["gradients"] == pytest.approx(trained / MIB)
    assert memory["optimiser"] == pytest.approx(3 * trained / MIB)
    assert memory["EMA"] == pytest.approx(trained / MIB)
    layer = 88.3 * size.width + 8 * size.inner_width
    row = (size.tokens + size.text_tokens / 4) * (size.num_layers * layer + 8 * size.inner_width)
    assert memory["activations"] == pytest.approx(6 * row / MIB)
    cut = recipe(dpo={**DPO, "learner": {**RANKS, "micro_batch_rows": 3}})
    assert dpo_memory(cut, size)["activations"] == pytest.approx(2 * row / MIB)


def test_plan_counts_the_parameters_that_dpo_trains() -> None:
    """The section `learner`, of adapters here, is of the phase grpo, which the recipe has not."""
    assert plan(recipe()).size.trainable_parameters == plan(recipe()).size.transformer_parameters
