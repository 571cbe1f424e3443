"""The cost of phases against values worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rlvid.config import LearnerConfig, ModelConfig, Recipe
from rlvid.config.loader import load_recipe
from rlvid.config.rewards import ServerConfig
from rlvid.launch.estimate.assumptions import Assumptions, read_assumptions
from rlvid.launch.estimate.judging import askings
from rlvid.launch.estimate.phases import PhaseEstimate, estimate, misfits
from rlvid.launch.estimate.render import phase_lines
from rlvid.launch.estimate.sampling import num_rendered, num_sampled
from rlvid.launch.estimate.training import learned_flops
from rlvid.launch.memory import MIB, server_parameters, sft_memory, sft_rows
from rlvid.launch.model_size import (
    read_clip_flops,
    read_model_size,
    read_row_flops,
    sizes_are_published,
)
from rlvid.launch.planner import plan
from rlvid.models import load_model

WAN = ModelConfig(
    path="/nowhere/Wan2.1-T2V-1.3B-Diffusers",
    dtype="bfloat16",
    num_frames=81,
    height=480,
    width=832,
    fps=16,
)
FULL = LearnerConfig(mode="full")
GPUS: dict[str, Any] = {
    "rollout": {"num_actors": 2, "num_gpus": 1.0, "guidance_scale": 5.0},
    "rewards": {"decode_gpus": 1.0},
    "sft": {
        "clips": "artifact:dataset",
        "num_steps": 10,
        "batch_size": 4,
        "anchor": {"beta": 1.0, "batch_size": 3},
        "learner": {"mode": "full", "num_ranks": 4, "num_gpus": 1.0, "zero_stage": 2},
    },
    "data_engine": {"prompts": {"num_prompts": 5}, "clips_per_prompt": 2},
}


def recipe(*phases: str, **sections: Any) -> Recipe:
    merged = {"name": "r", "phases": phases or ("data_engine", "sft", "evaluate"), **GPUS}
    return Recipe.model_validate({**merged, **sections})


def estimates(chosen: Recipe, assumed: Assumptions | None = None) -> dict[str, PhaseEstimate]:
    found = estimate(chosen, plan(chosen), assumed or Assumptions())
    return {phase.phase: phase for phase in found}


def amounts(phase: PhaseEstimate) -> dict[str, float | None]:
    return {work.what: work.flops for work, _ in phase.work}


def test_published_size_without_the_files() -> None:
    """81 frames are 1 + 80 / 4 = 21 latent ones, 480 x 832 are 60 x 104, halved by patches of 2."""
    size = read_model_size(WAN, FULL)
    assert size.tokens == 21 * 30 * 52 == 32_760
    assert size.latent_numbers == 16 * 21 * 60 * 104
    assert size.transformer_parameters == size.trainable_parameters == 1_418_996_800
    assert sizes_are_published(WAN) == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    assert sizes_are_published(ModelConfig()) == ""


def test_folder_of_an_unknown_name_is_still_an_error() -> None:
    with pytest.raises(ValueError, match="pipeline folder in diffusers layout"):
        read_model_size(ModelConfig(path="/nowhere/Wan9"), FULL)


def test_forward_of_wan_by_hand() -> None:
    """30 layers of width 1536 and 8960: 2 N d (6 d + 2 f), and 4 N d (N + 512) of attention."""
    row = read_row_flops(WAN)
    assert row is not None
    assert row.linear == 30 * 2 * 32_760 * 1536 * (6 * 1536 + 2 * 8960)
    assert row.attention == 30 * 4 * 32_760 * 1536 * (32_760 + 512)
    assert row.forward == pytest.approx(283.0e12, rel=1e-3)


def test_forward_is_what_torch_counts() -> None:
    """On the tiny model that ships, with its own number of tokens."""
    model = load_model(ModelConfig())
    row = read_row_flops(ModelConfig())
    assert row is not None
    latents = torch.randn(1, *model.latent_shape(17, 32, 32))
    condition = model.encode_prompts(["a red ball falls"])
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model.velocity(latents, torch.tensor([0.5]), condition)
    assert row.forward == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_recomputing_costs_a_forward_of_the_layers() -> None:
    """The docstring of `observability.flops` has both sums for a frozen base."""
    row = read_row_flops(WAN)
    assert row is not None
    lora = LearnerConfig(mode="lora", activation_checkpointing=True)
    assert learned_flops(row, lora) == row.trained
    assert learned_flops(row, FULL) == 3 * row.forward


def test_clips_of_the_data_engine() -> None:
    """64 broad prompts of 2 seeds to find weaknesses, then 5 prompts of 2 clips and 3 captions."""
    real = {"num_recaptions": 3, "num_clips": 8}
    engine = {**GPUS["data_engine"], "real": real}
    assert num_rendered(recipe(data_engine=engine)) == (64 * 2, 5 * 2 + 3)
    given = {"given": [{"scorer": "physics"}]}
    assert num_rendered(recipe(data_engine={**engine, "weakness": given})) == (0, 13)


def test_denoising_and_decoding_by_hand() -> None:
    """138 clips x 20 steps x 2 branches; without guidance half of it."""
    row, clip = read_row_flops(ModelConfig()), read_clip_flops(ModelConfig())
    assert row is not None
    assert clip.decode is not None
    work = amounts(estimates(recipe())["data_engine"])
    assert work["denoise"] == 138 * 20 * 2 * row.forward
    assert work["decode"] == 138 * clip.decode
    assert work["encode prompts"] == (64 + 5) * clip.text
    rollout = {**GPUS["rollout"], "guidance_scale": 1.0}
    unguided = amounts(estimates(recipe(rollout=rollout))["data_engine"])
    assert unguided["denoise"] == 138 * 20 * row.forward


def test_evaluation_samples_two_policies() -> None:
    row = read_row_flops(ModelConfig())
    assert row is not None
    work = amounts(estimates(recipe())["evaluate"])
    assert work["denoise"] == 2 * 32 * 2 * 20 * 2 * row.forward


def test_evaluation_samples_every_stage_that_is_asked_for() -> None:
    """Base and three phases in many steps; both students and the control in few; two sets."""
    chosen = load_recipe("post_train_tiny_cpu")
    assert num_sampled(chosen) == (2 * 4, 2 * 3)
    alone = chosen.model_copy(update={"phases": ("sft", "evaluate")})
    assert num_sampled(alone) == (2 * 2, 0)
    assert num_sampled(recipe()) == (2, 0)


def test_steps_of_fine_tuning_by_hand() -> None:
    """4 + 3 rows on 4 ranks are 8, one of which only fills up; 10 steps of 4 see 138 clips."""
    chosen = recipe()
    row, clip = read_row_flops(chosen.model), read_clip_flops(chosen.model)
    assert row is not None
    assert clip.encode is not None
    assert sft_rows(chosen) == 8
    phase = estimates(chosen)["sft"]
    work = amounts(phase)
    assert work["train"] == 10 * 8 * 3 * row.forward
    assert work["encode real clips"] == 256 * clip.encode
    assert "4.00 epochs" in phase.work[1][0].amount  # of 5 prompts x 2 clips


def test_hours_are_of_the_slowest_role_and_all_gpus_are_held() -> None:
    """2 actors and a decoder: 3 GPUs for as long as the slower of the two works."""
    assumed = Assumptions(sampling_mfu=0.5, vae_mfu=0.25)
    phase = estimates(recipe("data_engine", "evaluate"), assumed)["evaluate"]
    hours = {work.what: gpu_hours or 0.0 for work, gpu_hours in phase.work}
    work = amounts(phase)
    assert work["denoise"] is not None
    assert hours["denoise"] == pytest.approx(work["denoise"] / (0.5 * 989.5e12) / 3600)
    actors = (hours["denoise"] + hours["encode prompts"]) / 2
    assert phase.hours == pytest.approx(max(actors, hours["decode"]))
    assert phase.num_gpus == 3
    assert phase.held_gpu_hours == pytest.approx(3 * phase.hours)
    assert phase.gpu_hours < phase.held_gpu_hours


def test_stages_of_fine_tuning_come_one_after_the_other() -> None:
    phase = estimates(recipe())["sft"]
    assert phase.hours == pytest.approx(phase.gpu_hours / 4)
    assert phase.num_gpus == 4


def test_questions_and_tokens_of_a_judge() -> None:
    """8 frames of 32 x 32 are a token each; own questions are 4, those of a file what it holds."""
    scorers = recipe(
        rewards={
            "servers": {"judge": {}},
            "scorers": [
                {
                    "use": "vlm_judge",
                    "server": "judge",
                    "config": {"prompts": "adherence", "asks_own": True, "debias": True},
                },
                {"use": "vlm_pairwise", "server": "judge", "config": {"prompts": "adherence"}},
                {"use": "physics"},
            ],
        }
    ).rewards.scorers
    asked = askings(scorers, group_size=5, own_questions=True)
    assert [(a.requests, a.clips_shown) for a in asked] == [(4, 1), (4, 2)]
    assumed = Assumptions(question_tokens=50)
    assert [a.tokens(ModelConfig(), assumed) for a in asked] == [4 * (8 + 50), 4 * (16 + 50)]
    of_file = askings(scorers, group_size=5, own_questions=False)
    assert of_file[0].requests == 2 * 4  # each question and its negation


def test_size_of_a_server_that_is_not_here_is_in_its_name() -> None:
    of_7b = ServerConfig(model="/nowhere/Qwen2.5-VL-7B-Instruct")
    assert server_parameters(of_7b) == 7e9
    assert server_parameters(ServerConfig(model="/nowhere/judge")) is None
    assert 1e5 < (server_parameters(ServerConfig()) or 0) < 1e7


def test_memory_of_a_rank_of_wan_by_hand() -> None:
    """bfloat16 weights and text encoder, float32 VAE; ZeRO 2 over 4 ranks; 2 rows, recomputed."""
    sft = {**GPUS["sft"], "learner": {**GPUS["sft"]["learner"], "activation_checkpointing": True}}
    chosen = recipe(model=WAN.model_dump(), sft=sft)
    size = read_model_size(chosen.model, chosen.sft.learner)
    memory = sft_memory(chosen, size)
    trained = 1_418_996_800
    weights = 2 * (trained + size.text_encoder_parameters) + 4 * size.vae_parameters
    assert memory["weights"] == pytest.approx(weights / MIB)
    assert memory["gradients"] == pytest.approx(4 * trained / 4 / MIB)
    assert memory["optimiser"] == pytest.approx(12 * trained / 4 / MIB)
    tokens = 2 * (32_760 + 512 / 4)
    inputs, layer, backward = 30 * 2 * 1536, 68.3 * 1536 + 4 * 8960, 2 * 2 * 8960
    assert memory["activations"] == pytest.approx(tokens * (inputs + layer + backward) / MIB)


def test_process_that_does_not_fit_is_named_with_a_way_out() -> None:
    """Without recomputation 2 rows keep 30 layers of 141 KB a token: 259 GiB."""
    planned = plan(recipe(model=WAN.model_dump()))
    lines = misfits(planned, Assumptions())
    assert len(lines) == 1
    assert "sft learner rank: needs" in lines[0]
    assert "Set activation_checkpointing" in lines[0]
    assert misfits(planned, Assumptions(gpu_memory_gib=300.0)) == []


def test_disk_of_latents_and_checkpoints() -> None:
    """float32 latents; 2 checkpoints and the one being written, of 12 bytes a parameter."""
    found = estimates(recipe())
    size = read_model_size(ModelConfig(), FULL)
    latents = 4 * size.latent_numbers
    assert found["data_engine"].disk_bytes == 138 * latents
    pipeline = size.transformer_parameters + size.text_encoder_parameters + size.vae_parameters
    expected = 256 * latents + 3 * 12 * size.trainable_parameters + 4 * pipeline
    assert found["sft"].disk_bytes == expected


def test_reinforcement_learning_has_a_cost_too() -> None:
    chosen = recipe("grpo", "evaluate", learner={"num_gpus": 1.0})
    phase = estimates(chosen)["grpo"]
    assert [work.what for work, _ in phase.work] == ["denoise", "decode", "train"]
    assert phase.hours > 0


def test_recipe_on_cpus_has_no_gpu_hours() -> None:
    found = list(estimates(Recipe(name="r", phases=("grpo", "evaluate"))).values())
    assert all(hours is None for phase in found for _, hours in phase.work)
    assert phase_lines(found)[-1].split()[2:6] == ["-", "-", "0", "-"]


def test_assumptions_are_checked() -> None:
    assert read_assumptions(["sampling_mfu=0.5", "gpu=NVIDIA H200"]).sampling_mfu == 0.5
    for setting, message in (
        ("sampling_mfu", "expected NAME=VALUE"),
        ("mfu=0.5", "Names are: gpu, "),
        ("judge_mfu=2", "less than or equal to 1"),
        ("gpu=H100", "no peak is known for 'H100'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_assumptions([setting])
