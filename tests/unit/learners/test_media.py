"""Prompts with pictures and clips, from rollout to optimiser step: both are told the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rlvid.actors.rollout_worker import RolloutWorker
from rlvid.config import Recipe
from rlvid.data.prompts import with_media
from rlvid.data.video_files import write_mp4
from rlvid.launch.groups import training_task
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import PROMPTS, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.models.lora import add_lora
from rlvid.models.tiny_families.wan import tiny_i2v, tiny_ti2v, tiny_vace
from rlvid.records import Prompt, RolloutGroup
from rlvid.seeds import prompt_id


def _open(
    build: Callable[[], Any], *, algorithm: str = "grpo", **rollout: Any
) -> tuple[RlLearner, RolloutWorker, Recipe]:
    """Return a learner and a rollout worker that takes its publish."""
    recipe = tiny_recipe(
        model={"num_frames": 5, "height": 32, "width": 32},
        algorithm={"use": algorithm},
        rollout={"group_size": 2, "groups_per_step": 2, "num_denoising_steps": 3, **rollout},
    )
    learner = RlLearner(tiny_settings(recipe), build())
    model = build()
    add_lora(model.transformer, recipe.learner.lora)
    worker = RolloutWorker(model, recipe.model, actor_id="actor-0.0", mode=recipe.learner.mode)
    manifest, buckets = learner.publish(0)
    worker.fetch_weights(manifest, [buckets[index] for index in sorted(buckets)])
    return learner, worker, recipe


def _groups(
    worker: RolloutWorker, recipe: Recipe, folder: Path, *, has_control: bool = False
) -> dict[str, RolloutGroup]:
    groups = {}
    for number, text in enumerate(PROMPTS[:2]):
        media = {"first_frame": f"{number}.png"}
        if has_control:
            media["control"] = f"{number}.mp4"
            generator = torch.Generator().manual_seed(number)
            write_mp4(folder / f"{number}.mp4", torch.rand(5, 3, 32, 32, generator=generator), 8)
        Image.new("RGB", (40, 40), (60 * number, 255 - 60 * number, 90)).save(
            folder / f"{number}.png"
        )
        prompt = with_media(
            Prompt(prompt_id=prompt_id(text), text=text),
            media,
            where="test",
            folder=folder,
        )
        task = training_task(recipe, prompt, visit=0, step=0, position=number)
        groups[task.group_id] = worker.sample(task)
    return groups


@pytest.mark.parametrize("build", [tiny_i2v, tiny_ti2v, tiny_vace])
def test_groups_with_media_replay_exactly(build: Callable[[], Any], tmp_path: Path) -> None:
    """A learner that left one out would see another policy than the one that sampled."""
    learner, worker, recipe = _open(build, step_plan={"kind": "all"})
    groups = _groups(worker, recipe, tmp_path, has_control=build is tiny_vace)
    metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
    assert metrics["learner/replay_drift/max"] == 0.0
    assert metrics["learner/grad_norm/total"] > 0.0


def test_videos_with_a_first_frame_are_trained_by_the_forward_process(tmp_path: Path) -> None:
    learner, worker, recipe = _open(tiny_ti2v, algorithm="nft", guidance_scale=1.0)
    groups = _groups(worker, recipe, tmp_path)
    metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
    assert metrics["learner/grad_norm/total"] > 0.0


def test_canary_of_a_model_that_needs_a_picture_agrees() -> None:
    learner, worker, _ = _open(tiny_i2v)
    latents, sigma, velocity = learner.canary(PROMPTS[0])
    assert torch.equal(worker.canary(latents, sigma, PROMPTS[0]), velocity)
