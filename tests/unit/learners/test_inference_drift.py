"""What rollout.inference does to the replay: exact settings nothing, the others are refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.actors.rollout_worker import RolloutWorker
from rlvid.config import Recipe
from rlvid.launch.groups import pinned_task, training_task
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import PROMPTS, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.models.lora import add_lora
from rlvid.records import Prompt, RolloutGroup
from rlvid.seeds import prompt_id
from rlvid.testing import tiny_model

CACHE = {"step_cache": {"kind": "first_block", "threshold": 1e6}}
needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None, reason="needs torchao: pip install --no-deps torchao==0.18.0"
)


def _open(
    inference: dict[str, Any], **sections: dict[str, Any]
) -> tuple[RlLearner, RolloutWorker, Recipe]:
    """Return a learner and a rollout worker that sampled with `inference` takes its publish."""
    sections["rollout"] = {**sections.get("rollout", {}), "inference": inference}
    recipe = tiny_recipe(**sections)
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    model = tiny_model(0)
    if recipe.learner.mode == "lora":
        add_lora(model.transformer, recipe.learner.lora)
    worker = RolloutWorker(model, recipe.model, actor_id="actor-0.0", mode=recipe.learner.mode)
    worker.optimise(recipe.rollout.inference)
    manifest, buckets = learner.publish(0)
    worker.fetch_weights(manifest, [buckets[index] for index in sorted(buckets)])
    return learner, worker, recipe


def _prompt(number: int) -> Prompt:
    return Prompt(prompt_id=prompt_id(PROMPTS[number]), text=PROMPTS[number])


def _groups(worker: RolloutWorker, recipe: Recipe) -> dict[str, RolloutGroup]:
    tasks = [
        training_task(recipe, _prompt(number), visit=0, step=0, position=number)
        for number in range(4)
    ]
    return {task.group_id: worker.sample(task) for task in tasks}


def test_exact_settings_leave_the_ratio_at_one(tmp_path: Path) -> None:
    """Native attention and prompts from a folder change no bit of what is trained on."""
    exact = {"attention": "native", "prompt_cache": str(tmp_path)}
    learner, worker, recipe = _open(exact, rollout={"step_plan": {"kind": "all"}})
    groups = _groups(worker, recipe)
    metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
    assert metrics["learner/replay_drift/max"] == 0.0
    assert metrics["learner/ratio/mean"] == 1.0


def test_guidance_left_out_of_untrained_steps_leaves_the_ratio_at_one() -> None:
    """Only trained steps are replayed: what happens after them is part of the environment."""
    settings = {"guidance_interval": (0.5, 1.0)}
    learner, worker, recipe = _open(
        settings, rollout={"step_plan": {"kind": "isotemporal", "range_frac": (0.0, 0.3)}}
    )
    groups = _groups(worker, recipe)
    metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
    assert metrics["learner/replay_drift/max"] == 0.0


@pytest.mark.parametrize(
    "inference",
    [
        pytest.param(CACHE, id="step cache"),
        pytest.param({"guidance_interval": (0.9, 1.0)}, id="guidance interval"),
        pytest.param({"quantise": "int8_dynamic"}, id="int8", marks=needs_torchao),
    ],
)
def test_drift_of_a_lossy_setting_is_refused_above_the_clip_range(
    inference: dict[str, Any],
) -> None:
    """Every step is trained, so what is cached or rounded there is in the ratio."""
    sections: dict[str, Any] = {
        "rollout": {"step_plan": {"kind": "all"}},
        "algorithm": {"clip_range": 1e-5},
    }
    learner, worker, recipe = _open(inference, **sections)
    groups = _groups(worker, recipe)
    with pytest.raises(RuntimeError, match=r"replay drift .* at most 1e-05 .*rollout\.inference"):
        learner.train(groups, tiny_rewards(groups), step=0)


def test_drift_within_the_clip_range_is_reported_and_trained() -> None:
    sections: dict[str, Any] = {
        "rollout": {"step_plan": {"kind": "all"}},
        "grpo": {"max_replay_drift_frac": 1e6},
    }
    learner, worker, recipe = _open(CACHE, **sections)
    groups = _groups(worker, recipe)
    metrics = learner.train(groups, tiny_rewards(groups), step=0).metrics
    assert metrics["learner/replay_drift/max"] > 0.0


@pytest.mark.parametrize(
    "inference", [CACHE, pytest.param({"quantise": "int8_dynamic"}, marks=needs_torchao)]
)
def test_held_out_clips_and_the_canary_are_plain(inference: dict[str, Any]) -> None:
    """Evaluation is pinned: two policies must not differ by how fast they were sampled."""
    learner, worker, recipe = _open(inference)
    _, plain, _ = _open({})
    task = pinned_task(recipe, _prompt(0), label="heldout", position=0, num_seeds=2)
    fast = training_task(recipe, _prompt(0), visit=0, step=0, position=0)
    for _ in range(2):  # before and after a group that is sampled with the setting
        ours, theirs = worker.sample(task), plain.sample(task)
        for one, other in zip(ours.rollouts, theirs.rollouts, strict=True):
            assert torch.equal(one.latents, other.latents)
        assert not torch.equal(
            worker.sample(fast).rollouts[0].latents, plain.sample(fast).rollouts[0].latents
        )
    latents, sigma, velocity = learner.trainee.canary("a red ball")
    assert torch.equal(worker.canary(latents, sigma, "a red ball"), velocity)


def test_quantising_what_is_published_whole_is_refused() -> None:
    with pytest.raises(ValueError, match=r"quantise: expected learner.mode 'lora' .* got 'full'"):
        _open({"quantise": "int8_dynamic"}, learner={"mode": "full"})


def test_what_an_actor_cannot_run_names_the_recipe_key() -> None:
    with pytest.raises(ValueError, match=r"^rollout\.inference\.attention: 'flash' is not avail"):
        _open({"attention": "flash"})
