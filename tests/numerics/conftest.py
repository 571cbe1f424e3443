"""A real small velocity network and groups sampled with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlvid.algorithms.batch import assemble
from rlvid.config import RolloutConfig
from rlvid.flow.sampler import VelocityFunction, sample_group
from rlvid.flow.step_plans import make_step_plan
from rlvid.flow.step_weights import update_step_weights
from rlvid.records import LearnerBatch, Prompt, Rollout, RolloutGroup

LATENT_SHAPE = (4, 3, 4, 4)


class SmallVelocity(nn.Module):
    """Convolution and attention over all positions: its matrix products depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv3d(4, 16, 3, padding=1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 4)

    def forward(self, latents: Tensor, sigma: Tensor) -> Tensor:
        hidden = self.into(latents) * (1.0 + sigma.reshape(-1, 1, 1, 1, 1))
        tokens = hidden.flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        velocity: Tensor = self.out(torch.tanh(tokens + mixed))
        return velocity.transpose(1, 2).reshape(latents.shape)


@pytest.fixture
def network() -> SmallVelocity:
    torch.manual_seed(0)
    return SmallVelocity()


SampleGroup = Callable[..., RolloutGroup]


@pytest.fixture
def sample() -> SampleGroup:
    """Sample a group of 4 with `velocity`; keyword arguments go to RolloutConfig."""

    def make(
        velocity: VelocityFunction, *, dtype: torch.dtype = torch.float32, **settings: Any
    ) -> RolloutGroup:
        config = RolloutConfig(shift=3.0, group_size=4, **settings)
        plan = make_step_plan(config, recipe_seed=0, prompt_id="ball", step=0)
        noise_seeds = [100 + plan.noise_index(i, 4) for i in range(4)]
        drawn = sample_group(
            velocity,
            plan,
            noise_seeds=noise_seeds,
            step_seeds=range(4),
            latent_shape=LATENT_SHAPE,
            dtype=dtype,
        )
        rollouts = tuple(
            Rollout(
                index=i,
                noise_seed=noise_seeds[i],
                step_seed=i,
                latents=drawn.latents[i],
                trained_latents=drawn.trained_latents[i],
                trained_next_latents=drawn.trained_next_latents[i],
                behaviour_mean=drawn.behaviour_mean[i],
                behaviour_log_prob=drawn.behaviour_log_prob[i],
            )
            for i in range(4)
        )
        return RolloutGroup(
            group_id="000000-00",
            lease_id="1",
            prompt=Prompt(prompt_id="ball", text="a ball falls"),
            plan=plan,
            rollouts=rollouts,
            policy_version=0,
            weights_digest="",
            actor_id="a",
            sample_s=0.0,
            num_forwards=drawn.num_forwards,
        )

    return make


@pytest.fixture
def to_batch() -> Callable[..., LearnerBatch]:
    """Assemble a group with the advantages 1, -1, 0.5, -0.5, or those given."""

    def make(
        group: RolloutGroup,
        *,
        kind: str = "inverse_lambda",
        advantage: tuple[float, ...] = (1.0, -1.0, 0.5, -0.5),
        trained: tuple[bool, ...] = (True, True, True, True),
    ) -> LearnerBatch:
        (weights,) = update_step_weights(kind, [group.plan])
        return assemble(group, torch.tensor(advantage), torch.tensor(trained), step_weights=weights)

    return make
