"""Clips of a policy on the held-out prompts, in this process: what distances are measured on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlvid.actors.rollout_worker import RolloutWorker
from rlvid.config import Recipe
from rlvid.launch.groups import pinned_task
from rlvid.models.policy import Policy, open_policy
from rlvid.records import Prompt


@torch.inference_mode()
def policy_clips(
    recipe: Recipe, policy: Policy, prompts: Sequence[Prompt], *, num_seeds: int
) -> Tensor:
    """Return [P, S, T, 3, H, W] float32 in [0, 1], from the noise that evaluations sample from."""
    model = open_policy(policy, recipe.model)
    worker = RolloutWorker(
        model, recipe.model, actor_id="bench", mode="full", student=policy.sampling
    )
    clips = []
    for position, prompt in enumerate(prompts):
        task = pinned_task(recipe, prompt, label="bench", position=position, num_seeds=num_seeds)
        group = worker.sample(task)
        clips.append(model.decode(torch.stack([rollout.latents for rollout in group.rollouts])))
    return torch.stack(clips)


@torch.inference_mode()
def through_vae(recipe: Recipe, policy: Policy, clips: Tensor) -> Tensor:
    """[N, T, 3, H, W] -> the same after encoding and decoding: the best that latents can say."""
    model = open_policy(policy, recipe.model)
    return torch.cat([model.decode(model.encode(clip[None])) for clip in clips])
