"""`rollout.inference` on its way from an actor's settings into the worker it opens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlvid.actors.worker import WorkerSettings, open_worker
from rlvid.config import LearnerConfig, ModelConfig, RolloutConfig
from rlvid.config.inference import InferenceConfig, StepCacheConfig
from rlvid.flow.step_plans import make_step_plan
from rlvid.models.policy import Policy
from rlvid.records import GroupTask, Prompt

SETTINGS = WorkerSettings(
    use="diffusion",
    policy=Policy(model_path="tiny"),
    model_config=ModelConfig(num_frames=5),
    learner_config=LearnerConfig(),
    weights_config=None,
    num_threads=1,
)
ROLLOUT = RolloutConfig(shift=3.0, group_size=2, num_denoising_steps=4)
TASK = GroupTask(
    group_id="000000-00",
    lease_id="",
    prompt=Prompt(prompt_id="p", text="a red ball falls to the left"),
    plan=make_step_plan(ROLLOUT, recipe_seed=0, prompt_id="p", step=0),
    noise_seeds=(1, 1),
    step_seeds=(2, 3),
    guidance_scale=3.0,
)


def test_worker_samples_training_groups_with_the_setting_alone() -> None:
    cache = StepCacheConfig(kind="first_block", threshold=1e6)
    fast = open_worker(replace(SETTINGS, inference=InferenceConfig(step_cache=cache)), "fast")
    plain = open_worker(SETTINGS, "plain")
    pinned = replace(TASK, is_pinned=True)
    expected = plain.sample(TASK).rollouts[0].latents
    assert not torch.equal(fast.sample(TASK).rollouts[0].latents, expected)
    assert torch.equal(fast.sample(pinned).rollouts[0].latents, expected)


def test_setting_that_cannot_run_stops_the_actor_with_its_key() -> None:
    settings = replace(SETTINGS, inference=InferenceConfig(attention="flash"))
    with pytest.raises(ValueError, match=r"^rollout\.inference\.attention: 'flash' is not avail"):
        open_worker(settings, "fast")
