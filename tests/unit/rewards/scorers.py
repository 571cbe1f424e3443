"""Scorers that tests name in recipes, good and bad, and a group to score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvid.records import NoiseSettings, Prompt, Rollout, RolloutGroup, StepPlan
from rlvid.rewards.base import ClipSpec


class Brightness:
    """Nearness of the mean luma to a target."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        target: float = 0.5

    def __init__(self, config: Config) -> None:
        self.target = config.target
        self.clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return 1.0 - (videos.mean(dim=(1, 2, 3, 4)) - self.target).abs()


class RankInGroup:
    """Group-wise: the place of a clip among its group by brightness."""

    clip_spec = ClipSpec()

    def score_group(self, videos: Tensor, prompt: Prompt) -> Tensor:
        return videos.mean(dim=(1, 2, 3, 4)).argsort().argsort().float()


class OneForAll:
    """Wrong: one number for the batch."""

    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.zeros(4)


class SecondIsNan:
    """Fails to judge the second clip."""

    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        scores = torch.ones(len(videos))
        scores[1] = torch.nan
        return scores


class Raises:
    """Always fails."""

    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise OSError("the judge's disk is full")


class BatchCentred:
    """Wrong: a score depends on the other clips."""

    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        means = videos.mean(dim=(1, 2, 3, 4))
        return means - means.mean()


class NeedsWideClips:
    """Wants clips that the tiny model does not make."""

    clip_spec = ClipSpec(fps=16, width=832)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.ones(len(videos))


class NoScorer:
    """Has neither score() nor score_group()."""

    clip_spec = ClipSpec()


def group(
    group_id: str = "000000-00",
    group_size: int = 8,
    latent_shape: tuple[int, int, int, int] = (3, 5, 8, 8),
    text: str = "a red ball falls to the left while the camera stays still",
) -> RolloutGroup:
    """A group with random latents and empty trajectories."""
    generator = torch.Generator().manual_seed(0)
    nothing = torch.zeros(0, *latent_shape)
    rollouts = tuple(
        Rollout(
            index=index,
            noise_seed=0,
            step_seed=index,
            latents=torch.rand(latent_shape, generator=generator),
            trained_latents=nothing,
            trained_next_latents=nothing,
            behaviour_mean=nothing,
            behaviour_log_prob=torch.zeros(0),
        )
        for index in range(group_size)
    )
    noise = NoiseSettings(schedule="flow", eta=0.0, truncation=0.45, first_sigma=0.5)
    plan = StepPlan(
        sigmas=(1.0, 0.5, 0.0), stochastic_steps=(), trained_steps=(), noise=noise, num_noises=1
    )
    return RolloutGroup(
        group_id=group_id,
        lease_id=f"{group_id}/0",
        prompt=Prompt(prompt_id="0123456789abcdef", text=text),
        plan=plan,
        rollouts=rollouts,
        policy_version=0,
        weights_digest="base",
        actor_id="actor-0",
        sample_s=0.0,
        num_forwards=0,
    )


def latents_as_video(latents: Tensor) -> Tensor:
    """Take the three latent channels for RGB: [B, C, F, H, W] -> [B, F, C, H, W]."""
    return latents.transpose(1, 2)
