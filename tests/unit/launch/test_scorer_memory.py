"""What scorers take, worked out by hand, and what critics declare against what they allocate."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.config import LearnerConfig, ModelConfig, Recipe
from rlvid.config.rewards import ScorerConfig
from rlvid.data.tiny_world import render_clip
from rlvid.launch.host_memory import HEAP
from rlvid.launch.memory import MIB
from rlvid.launch.model_size import ModelSize, read_model_size
from rlvid.launch.planner import plan, remarks
from rlvid.launch.role_plan import RolePlan
from rlvid.launch.scorer_memory import HANDED_BYTES, scorer_memory
from rlvid.models.live_bytes import LiveBytes
from rlvid.plugins import resolve
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, Reward, working_bytes_of
from rlvid.rewards.critics import BUILTIN
from rlvid.rewards.registry import open_scorer
from rlvid.rewards.scoring import as_declared

ACCEPTED = 0.15
NUM_FRAMES, SIDE = 33, 96
FACTS = {
    "object": "ball",
    "colour": "red",
    "motion": "falls",
    "direction": "left",
    "camera": "still",
}
PROMPT = Prompt(
    prompt_id="p",
    text="a red ball falls to the left while the camera stays still",
    facts=FACTS,
)


@pytest.mark.parametrize(
    "use",
    [
        *("adherence", "physics", "physics_laws", "camera_motion", "flicker", "warping"),
        *("motion_amount", "motion_smoothness", "exposure", "grid", "picture_quality", "realism"),
    ],
)
def test_critics_allocate_what_they_declare(use: str) -> None:
    """Of numpy's arrays, which are all but a little of what they use, tracemalloc sees each. Two
    clips, since some of the first may be there when the second is begun."""
    scorer, clips = opened(use), clip_of(NUM_FRAMES, SIDE)
    scorer.score(clips, [PROMPT] * 2)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        scorer.score(clips, [PROMPT] * 2)
        counted = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    declared = working_bytes_of(type(scorer))
    assert declared is not None
    assert declared * NUM_FRAMES * SIDE**2 == pytest.approx(counted, rel=ACCEPTED)


def test_a_network_allocates_what_it_declares() -> None:
    """At the one size it takes, clip after clip; its tensors are torch's."""
    scorer, clips = opened("attribute_judge"), clip_of(17, 32)
    with LiveBytes([clips]) as alive:
        scorer.score(clips, [PROMPT] * 2)
    declared = working_bytes_of(type(scorer))
    assert declared is not None
    assert declared * 17 * 32**2 == pytest.approx(alive.peak, rel=ACCEPTED)


def opened(use: str) -> Reward:
    scorer = open_scorer(ScorerConfig(use=use), "rewards.scorers.0")
    assert isinstance(scorer, Reward)
    return scorer


def clip_of(num_frames: int, side: int) -> Tensor:
    """Return two equal clips, [2, T, 3, H, W]."""
    clip = render_clip(FACTS, 1, num_frames=num_frames, height=side, width=side)
    return clip.repeat(2, 1, 1, 1, 1)


def test_scorers_of_a_process_take_turns() -> None:
    """8 clips of a batch at 27 bytes a pixel, and one clip at what the neediest works in.

    A batch of smaller groups has clips of several.
    """
    size = tiny_size()
    pixels = 17 * 32 * 32
    scorers = [ScorerConfig(use="realism"), ScorerConfig(use="physics")]
    needs = scorer_memory(scorers, size, group_size=16)
    assert needs == scorer_memory(scorers, size, group_size=4)
    neediest = working_bytes_of(resolve("physics", BUILTIN, where="use"))
    assert neediest is not None
    assert needs.scoring * MIB == pytest.approx(pixels * (8 * 27 + neediest))
    assert (needs.weights, needs.on_gpu, needs.not_counted) == (0.0, 0.0, ())


def test_weights_are_files_or_what_a_folders_name_says(tmp_path: Path) -> None:
    """Files of a folder that is there; else 7e9 parameters of 2 bytes, or 4 of float32."""
    named = {"folder": str(tmp_path / "HPSv3"), "base_folder": "~/none/Qwen2-VL-7B-Instruct"}
    halves = ScorerConfig(use="hpsv3", device="cuda", config={**named, "bfloat16": True})
    for config, expected in (
        (halves, 14e9),
        (ScorerConfig(use="hpsv3", device="cuda", config=named), 28e9),
    ):
        needs = scorer_memory([config], tiny_size(), group_size=4)
        assert needs.weights * MIB == pytest.approx(expected)
        assert needs.on_gpu * MIB == 8 * 17 * 32 * 32 * 12
        assert needs.not_counted == ("hpsv3",)
    (tmp_path / "HPSv3").mkdir()
    (tmp_path / "HPSv3" / "HPSv3.safetensors").write_bytes(bytes(1000))
    assert scorer_memory([halves], tiny_size(), group_size=4).weights * MIB == 1000


def test_scorers_are_in_ram_beside_a_decoder_on_a_gpu() -> None:
    rewards: dict[str, Any] = {"colocate": True, "scorers": [{"use": "physics"}]}
    for decode_gpus in (0.0, 0.5):
        chosen = recipe(rewards={**rewards, "decode_gpus": decode_gpus})
        role = pool(chosen)
        needs = scorer_memory(
            chosen.rewards.scorers, tiny_size(), group_size=chosen.rollout.group_size
        )
        if decode_gpus:
            assert "scoring" not in role.memory_mib
            assert role.host_mib["scoring"] == pytest.approx(HEAP * needs.scoring)
        else:
            assert role.memory_mib["scoring"] == needs.scoring


def test_a_scorer_that_does_not_say_is_named() -> None:
    """Nothing stands for what is not known."""
    silent = recipe(rewards={"scorers": [{"use": "sleeping", "name": "mine"}]})
    assert any("not counted" in line and "mine" in line for line in remarks(plan(silent)))
    assert not any("not " in line for line in remarks(plan(recipe())))


def test_scorers_whose_time_is_not_in_the_hours_are_named() -> None:
    """A judge's is, behind its server."""
    scorers = [{"use": "physics"}, {"use": "vlm_judge", "server": "judge"}]
    rewards = {"scorers": scorers, "servers": {"judge": {}}}
    sections = {"learner": {"num_gpus": 1}, "grpo": {"evaluate_every": 0}}
    lines = remarks(plan(recipe(rewards=rewards, **sections)))
    assert "not in the hours: the time of the scorers physics" in lines


def test_a_clip_is_handed_over_as_floats_made_twice() -> None:
    """27 bytes: uint8 of three colours, and float32 twice while it is scaled."""
    frames = torch.zeros(2, 5, 8, 8, 3, dtype=torch.uint8)
    with LiveBytes([frames]) as alive:
        as_declared(frames.numpy(), ClipSpec())
    assert alive.peak + frames.numel() == HANDED_BYTES * 2 * 5 * 8 * 8


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", "phases": ["grpo"], **sections})


def pool(chosen: Recipe) -> RolePlan:
    return next(role for role in plan(chosen).roles if role.role.startswith("rewards: decoder"))


def tiny_size() -> ModelSize:
    return read_model_size(ModelConfig(), LearnerConfig())
