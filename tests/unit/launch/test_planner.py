"""The plan's numbers against values worked out by hand, and what the machine cannot hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlvid.config import LearnerConfig, ModelConfig, Recipe
from rlvid.config.loader import RECIPE_FOLDER, load_recipe
from rlvid.launch import planner
from rlvid.launch.demand import ClusterError
from rlvid.launch.estimate.assumptions import Assumptions
from rlvid.launch.estimate.phases import estimate
from rlvid.launch.host_memory import PROCESS_MIB, node_has_mib, node_needs_mib
from rlvid.launch.memory import MIB, learner_memory, sft_memory
from rlvid.launch.model_size import count_trainable, read_model_size
from rlvid.launch.planner import check_machine, forwards_per_step, plan, short_of_memory
from rlvid.learners.zero_settings import MAX_BUCKET_ELEMENTS
from rlvid.models import load_model
from rlvid.models.tiny import vlm_judge_folder

SHIPPED = sorted(RECIPE_FOLDER.glob("*.yaml"))


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", **sections})


def test_sizes_are_those_of_the_loaded_model() -> None:
    """Read from file headers, they must agree with the parameters that torch counts."""
    model = load_model(ModelConfig())
    size = read_model_size(ModelConfig(), LearnerConfig(mode="full"))
    counted = sum(parameter.numel() for parameter in model.transformer.parameters())
    assert size.transformer_parameters == size.trainable_parameters == counted
    channels, frames, height, width = model.latent_shape(17, 32, 32)
    assert size.latent_numbers == channels * frames * height * width


def test_lora_trains_rank_times_both_sides() -> None:
    """One 4x6 target at rank 16: 16 * (4 + 6); a bias and an untargeted layer add nothing."""
    shapes = {"a.to_q.weight": (4, 6), "a.to_q.bias": (4,), "a.ffn.weight": (9, 9)}
    assert count_trainable(shapes, LearnerConfig(mode="lora")) == 160


def test_forwards_of_a_plan_with_every_step_by_hand() -> None:
    """4 denoising steps, step 0 stochastic: 1 shared forward, then 3 of 8; times 2 for guidance.

    Trained are steps 0 to 2: 1 shared row, then 2 of 8.
    """
    drawn = recipe(
        rollout={
            "num_denoising_steps": 4,
            "group_size": 8,
            "groups_per_step": 3,
            "step_plan": {"kind": "all"},
        }
    )
    assert forwards_per_step(drawn) == (3 * 2 * (1 + 3 * 8), 3 * 2 * (1 + 2 * 8))


def test_sharing_noise_saves_forwards_and_guidance_doubles_them() -> None:
    shared = forwards_per_step(recipe())[0]
    alone = forwards_per_step(recipe(rollout={"initial_noise": "independent"}))[0]
    unguided = forwards_per_step(recipe(rollout={"guidance_scale": 1.0}))[0]
    assert shared < alone
    assert shared == 2 * unguided


@pytest.mark.parametrize(
    ("algorithm", "learned"),
    [
        ({"use": "nft"}, 3 * 8 * 6 * (1 + 2 / 3)),
        ({"use": "awm", "awm": {"old_weight": 0.0}}, 3 * 8 * 6 * (1 + 1 / 3)),
        ({"use": "awm", "advantage": {"best_of_n": 4}}, 3 * 4 * 6 * (1 + 2 / 3)),
        ({"use": "dpo"}, 3 * 2 * 6 * (1 + 1 / 3)),
        ({"use": "refl", "refl": {"num_gradient_steps": 2}}, 3 * 8 * 2),
        (
            {"use": "refl", "refl": {"start": "noise", "reference_weight": 1.0}},
            3 * 8 * (1 + (2.5 + 1) / 3),
        ),
        ({"use": "dpo", "dpo": {"max_pairs": None}, "updates_per_batch": 2}, 2 * 3 * 8 * 6 * 4 / 3),
    ],
)
def test_final_videos_are_learned_from(algorithm: dict[str, Any], learned: float) -> None:
    """3 groups of 8 at six levels; a policy compared with is a third of a forward and backward.

    Sampling is 4 denoising steps of 8 noises.
    """
    drawn = recipe(
        algorithm=algorithm,
        rollout={
            "num_denoising_steps": 4,
            "group_size": 8,
            "groups_per_step": 3,
            "guidance_scale": 1.0,
            "initial_noise": "independent",
            "step_plan": {"kind": "ode"},
        },
    )
    sampling, learning = forwards_per_step(drawn)
    assert sampling == 3 * 4 * 8
    assert learning == pytest.approx(learned)


@pytest.mark.parametrize(
    ("mode", "stage", "copies"), [("full", 2, 2), ("lora", 2, 0), ("lora", 3, 1)]
)
def test_policies_that_nft_compares_with_are_held(mode: str, stage: int, copies: int) -> None:
    """Old policy and reference; a LoRA shares its base with them where it is not sharded."""
    rollout = {"guidance_scale": 1.0}
    learner = {"mode": mode, "zero_stage": stage}
    size = read_model_size(ModelConfig(), LearnerConfig.model_validate(learner))
    without, held = (
        learner_memory(recipe(rollout=rollout, learner=learner, algorithm=algorithm), size)
        for algorithm in ({}, {"use": "nft"})
    )
    grown = (held["weights"] - without["weights"]) * MIB
    assert grown == pytest.approx(copies * 4 * size.transformer_parameters)
    assert held["EMA"] * MIB == pytest.approx(4 * size.trainable_parameters)


@pytest.mark.parametrize(
    ("stage", "bytes_per_parameter"),
    [(0, 4 + 4 + 8), (1, 4 + 4 + 6), (2, 4 + 2 + 6), (3, 2 + 2 + 6)],
)
def test_zero_stages_divide_what_they_say(stage: int, bytes_per_parameter: int) -> None:
    """float32, full fine-tuning, 2 ranks: weights 4, gradients 4, Adam 8 bytes a parameter, and
    from stage 1 on a master of 4."""
    chosen = recipe(learner={"mode": "full", "zero_stage": stage, "num_ranks": 2})
    size = read_model_size(chosen.model, chosen.learner)
    memory = learner_memory(chosen, size)
    state = memory["weights"] + memory["gradients"] + memory["optimiser"]
    expected = bytes_per_parameter * size.transformer_parameters + 4 * size.text_encoder_parameters
    assert state == pytest.approx(expected / MIB, rel=1e-12)


@pytest.mark.parametrize(
    ("num_gpus", "stage", "parameters", "bytes_per_parameter"),
    [(1.0, 2, "none", 4 + 2), (1.0, 3, "none", 2), (1.0, 3, "cpu", 4), (0.0, 3, "cpu", 2 + 2 + 6)],
)
def test_offload_leaves_the_gpu_and_not_a_machine_without_one(
    num_gpus: float, stage: int, parameters: str, bytes_per_parameter: int
) -> None:
    """As above; offloaded parameters of this small model may all be gathered at a time."""
    learner = {
        **{"mode": "full", "num_ranks": 2, "num_gpus": num_gpus, "zero_stage": stage},
        "offload": {"parameters": parameters},
    }
    chosen = recipe(learner=learner)
    size = read_model_size(chosen.model, chosen.learner)
    memory = learner_memory(chosen, size)
    state = memory["weights"] + memory["gradients"] + memory["optimiser"]
    expected = bytes_per_parameter * size.transformer_parameters + 4 * size.text_encoder_parameters
    assert state == pytest.approx(expected / MIB, rel=1e-12)


def test_optimiser_on_disk_is_in_no_memory() -> None:
    """Not on a machine without a GPU either, where all else that is offloaded stays."""
    learner = {"mode": "full", "zero_stage": 2, "num_ranks": 2}
    offload = {"optimizer": "disk", "folder": "state"}
    chosen = recipe(learner={**learner, "offload": offload})
    size = read_model_size(chosen.model, chosen.learner)
    held = learner_memory(recipe(learner=learner), size)
    left = learner_memory(chosen, size)
    assert held["optimiser"] > 0.0
    assert left == {**held, "optimiser": 0.0}


@pytest.mark.parametrize("stage", [0, 3])
def test_average_is_shared_out_in_every_stage(stage: int) -> None:
    """float32, 4 bytes a parameter over the whole gang: a quarter of them on each of 4 ranks."""
    learner = {"mode": "full", "zero_stage": stage, "num_ranks": 4, "ema": {}}
    chosen = recipe(learner=learner, sft={"learner": learner})
    size = read_model_size(chosen.model, chosen.learner)
    for memory in (learner_memory(chosen, size), sft_memory(chosen, size)):
        assert memory["EMA"] * MIB == pytest.approx(size.transformer_parameters)


def test_ranks_that_share_clips_share_activations() -> None:
    """Two ranks hold half each of what a rank of its own would."""
    alone = plan(recipe()).roles[-1].memory_mib["activations"]
    sharing = plan(recipe(learner={"num_ranks": 2, "sequence_parallel": 2}))
    assert sharing.roles[-1].memory_mib["activations"] == pytest.approx(alone / 2)


def test_checkpointing_saves_activations() -> None:
    kept = plan(recipe()).roles[-1].memory_mib["activations"]
    saved = plan(recipe(learner={"activation_checkpointing": True}))
    assert saved.roles[-1].memory_mib["activations"] < 0.4 * kept


def test_servers_and_judges_are_in_the_plan() -> None:
    """They hold CPUs, GPUs and memory like any role; a server of somebody else's does not."""
    rewards = {
        "scorers": [
            {"use": "physics"},
            {"use": "vlm_judge", "server": "own"},
            {"use": "vlm_judge", "name": "of_theirs", "server": "theirs"},
        ],
        "servers": {"own": {"num_replicas": 2}, "theirs": {"urls": ["http://127.0.0.1:1"]}},
    }
    judged = recipe(rewards=rewards, evaluate={"judges": [{"use": "attribute_judge"}]})
    roles = {role.role: role for role in plan(judged).roles}
    assert "rewards: attribute_judge" in roles
    assert "vLLM server: theirs" not in roles
    server = roles["vLLM server: own"]
    assert (server.num_processes, server.num_cpus, server.num_gpus) == (2, 1.0, 0.0)
    folder = vlm_judge_folder()
    assert server.total_mib == (folder / "model.safetensors").stat().st_size / MIB


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_planned(path: Path) -> None:
    """Each phase that trains or samples has a role, and most a cost."""
    chosen = load_recipe(path)
    planned = plan(chosen)
    with_roles = {phase for role in planned.roles for phase in role.phases}
    assert set(chosen.phases) - with_roles <= {"tiny_base", "reward_model"}
    found = {phase.phase: phase for phase in estimate(chosen, planned, Assumptions())}
    assert set(chosen.phases) - set(found) <= {"tiny_base", "reward_model"}
    assert all(phase.flops > 0 and phase.peak_mib > 0 for phase in found.values())


def test_recipe_with_more_gpus_than_the_machine_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"learner\.num_gpus.*512 GPUs together"):
        check_machine(recipe(learner={"num_gpus": 512}))


def test_recipe_with_fewer_cluster_cpus_than_its_roles_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"cluster\.num_cpus"):
        check_machine(recipe(cluster={"num_cpus": 1}, rollout={"num_actors": 4}))


def test_a_bucket_of_gradients_is_as_large_as_what_is_trained_up_to_a_limit() -> None:
    """bfloat16, all trained: 4 bytes a parameter at stage 1, where the sum is staged, else 2."""
    for stage, width in ((0, 0), (1, 4), (2, 2), (3, 2)):
        learner = {"mode": "full", "zero_stage": stage, "num_ranks": 2}
        chosen = recipe(learner=learner, model={"dtype": "bfloat16"})
        size = read_model_size(chosen.model, chosen.learner)
        for trained, elements in ((1000, 1000), (10 * MAX_BUCKET_ELEMENTS, MAX_BUCKET_ELEMENTS)):
            memory = learner_memory(chosen, replace(size, trainable_parameters=trained))
            assert memory["gradient bucket"] * MIB == pytest.approx(width * elements)


def test_offload_is_in_ram_and_a_process_without_a_gpu_has_all_there() -> None:
    """2 ranks of stage 2, float32: 12 + 4 bytes of half the parameters, 8 of those stepped on."""
    learner = {"mode": "full", "num_ranks": 2, "zero_stage": 2, "offload": {}}
    without = plan(recipe(learner=learner)).roles[-1]
    rank = plan(recipe(learner={**learner, "num_gpus": 1.0})).roles[-1]
    trained = plan(recipe(learner=learner)).size.trainable_parameters
    moved = rank.host_mib["optimiser"] + rank.host_mib["gradients"]
    assert moved * MIB == pytest.approx((12 + 8 + 4) * trained / 2)
    assert "model" not in rank.host_mib
    assert without.host_mib["model"] >= without.total_mib
    assert without.host_mib["process"] == PROCESS_MIB["learner rank"]


def test_more_processes_than_the_machine_has_ram_are_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cluster that is joined is not this machine."""
    chosen = recipe(rollout={"num_actors": 4})
    planned = plan(chosen)
    needs = node_needs_mib(planned.roles)
    assert needs > 4 * PROCESS_MIB["rollout actor"]
    for has, warns in ((needs + 1, False), (needs - 1, True)):
        monkeypatch.setattr(planner, "node_has_mib", lambda has=has: has)
        assert bool(short_of_memory(chosen, planned)) is warns
    elsewhere = recipe(cluster={"address": "10.0.0.1:6379"})
    assert short_of_memory(elsewhere, planned) == ""
    assert node_has_mib() > 0
