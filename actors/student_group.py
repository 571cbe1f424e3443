"""A group sampled as a distilled student is, in place of the pinned ODE sampler."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlvid.flow.prompt_condition import prompt_condition
from rlvid.flow.sampler import GroupSample
from rlvid.models.base import VideoModel
from rlvid.models.student import Student, StudentSampling
from rlvid.records import GroupTask


@torch.no_grad()
def sample_student_group(
    model: VideoModel,
    sampling: StudentSampling,
    task: GroupTask,
    *,
    latent_shape: Sequence[int],
    dtype: str,
) -> GroupSample:
    """Return a clip for each rollout of a task that has no stochastic step; no step is trained.

    The task's levels and guidance are the teacher's and are not read: a student has its own levels
    and no guidance. Starting noise is that of the ODE sampler for the same seed.

    Args:
        latent_shape: (C, F, H, W).
        dtype: `model.dtype` of the recipe.
    """
    seeds = task.noise_seeds
    condition, _ = prompt_condition(model, [task.prompt], latent_shape)
    student = Student(model, sampling, dtype=dtype)
    latents = student.generate(
        seeds, latent_shape, condition.expand(len(seeds)), step_seeds=task.step_seeds
    )
    empty = latents.new_zeros((len(seeds), 0, *latents.shape[1:]))
    return GroupSample(
        latents=latents,
        trained_latents=empty,
        trained_next_latents=empty,
        behaviour_mean=empty,
        behaviour_log_prob=latents.new_zeros((len(seeds), 0)),
        num_forwards=len(seeds) * len(sampling.sigmas),
    )
