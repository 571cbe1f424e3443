"""Sampling a group: what is shared is done once, and batching changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.config import RolloutConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import initial_noise, sample_group, sample_ode
from rlvid.flow.sde import sde_step
from rlvid.flow.step_plans import make_step_plan
from rlvid.records import StepPlan

SHAPE = (4, 3, 4, 4)


def plan_of(**settings: Any) -> StepPlan:
    config = RolloutConfig(shift=3.0, group_size=4, **settings)
    return make_step_plan(config, recipe_seed=0, prompt_id="ball", step=0)


def elementwise_velocity(latents: Tensor, sigma: Tensor) -> Tensor:
    """A velocity without matrix products: its rounding does not depend on the batch."""
    return latents * latents * 0.1 - sigma.reshape(-1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("initial", "kind", "before"),
    [("shared", "isotemporal", 1), ("independent", "isotemporal", 4), ("shared", "branch", 2)],
)
def test_shared_prefix_is_computed_once(initial: str, kind: str, before: int) -> None:
    """Up to and including the first stochastic step a noise is forwarded once, not per rollout."""
    batches: list[int] = []

    def counting(latents: Tensor, sigma: Tensor) -> Tensor:
        batches.append(latents.shape[0])
        return elementwise_velocity(latents, sigma)

    plan = plan_of(initial_noise=initial, step_plan={"kind": kind})
    drawn = sample_group(
        counting,
        plan,
        noise_seeds=[plan.noise_index(i, 4) for i in range(4)],
        step_seeds=range(4),
        latent_shape=SHAPE,
    )
    (first,) = plan.stochastic_steps
    assert batches == [before] * (first + 1) + [4] * (plan.num_steps - first - 1)
    assert drawn.num_forwards == sum(batches)


def test_rollout_does_not_depend_on_its_group() -> None:
    """Seeds are per rollout: the same rollout alone, or with others, is the same bits."""
    plan = plan_of(initial_noise="independent", step_plan={"kind": "all"})
    seeds, step_seeds = [3, 1, 4, 5], [9, 2, 6, 8]
    whole = sample_group(
        elementwise_velocity, plan, noise_seeds=seeds, step_seeds=step_seeds, latent_shape=SHAPE
    )
    alone_plan = plan_of(initial_noise="shared", step_plan={"kind": "all"})
    for i in range(4):
        alone = sample_group(
            elementwise_velocity,
            alone_plan,
            noise_seeds=seeds[i : i + 1],
            step_seeds=step_seeds[i : i + 1],
            latent_shape=SHAPE,
        )
        assert torch.equal(alone.latents[0], whole.latents[i])
        assert torch.equal(alone.behaviour_log_prob[0], whole.behaviour_log_prob[i])


def test_rollouts_of_one_noise_differ_by_their_step_noise() -> None:
    """Else every reward in the group would be equal and nothing could be learned."""
    plan = plan_of()
    drawn = sample_group(
        elementwise_velocity, plan, noise_seeds=[1] * 4, step_seeds=range(4), latent_shape=SHAPE
    )
    assert torch.equal(drawn.trained_latents[0], drawn.trained_latents[3])
    assert not torch.equal(drawn.latents[0], drawn.latents[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_states_score_to_the_recorded_log_prob(dtype: torch.dtype) -> None:
    """States are rounded before they are scored: the learner sees the values that were sampled."""
    plan = plan_of(step_plan={"kind": "random", "num_steps": 3})
    drawn = sample_group(
        elementwise_velocity,
        plan,
        noise_seeds=[1] * 4,
        step_seeds=range(4),
        latent_shape=SHAPE,
        dtype=dtype,
    )
    assert drawn.trained_latents.dtype == dtype
    for position, j in enumerate(plan.trained_steps):
        sigma = torch.full((4,), plan.sigmas[j])
        latents = drawn.trained_latents[:, position].float()
        scored = sde_step(
            elementwise_velocity(latents, sigma),
            latents,
            sigma,
            torch.full((4,), plan.sigmas[j + 1]),
            noise=plan.noise,
            next_latents=drawn.trained_next_latents[:, position].float(),
        )
        assert torch.equal(scored.log_prob, drawn.behaviour_log_prob[:, position])
        assert torch.equal(scored.mean, drawn.behaviour_mean[:, position])


def test_plan_without_noise_is_the_ode_sampler() -> None:
    """Evaluation's pinned sampler and the rollout's deterministic part are one thing."""
    plan = plan_of()
    still = StepPlan(
        sigmas=plan.sigmas, stochastic_steps=(), trained_steps=(), noise=plan.noise, num_noises=1
    )
    drawn = sample_group(
        elementwise_velocity, still, noise_seeds=[5, 5], step_seeds=[0, 1], latent_shape=SHAPE
    )
    ode = sample_ode(elementwise_velocity, initial_noise(5, SHAPE)[None], plan.sigmas)
    assert torch.equal(drawn.latents, ode.expand(2, *SHAPE))
    assert drawn.trained_latents.shape == (2, 0, *SHAPE)


def test_seeds_that_contradict_the_plan_are_refused() -> None:
    """A rollout recorded with a noise it did not start from could never be replayed."""
    with pytest.raises(ValueError, match=r"noise_seeds\[2\]"):
        sample_group(
            elementwise_velocity,
            plan_of(),
            noise_seeds=[1, 1, 2, 1],
            step_seeds=range(4),
            latent_shape=SHAPE,
        )


class PromptedVelocity:
    """A model whose velocity is the mean of what it is told; counts its forwards."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.batches.append(latents.shape[0])
        told = condition["told"].mean(dim=(1, 2))
        return torch.zeros_like(latents) + told.reshape(-1, 1, 1, 1, 1)


def test_guidance_extrapolates_in_one_forward() -> None:
    """negative + scale (conditional - negative): 1 + 3 (2 - 1) = 4, both halves in one batch."""
    model = PromptedVelocity()
    latents, sigma = torch.zeros(2, *SHAPE), torch.ones(2)
    conditional, negative = (Condition({"told": torch.full((1, 5, 8), x)}) for x in (2.0, 1.0))
    guided = guided_velocity(model, latents, sigma, conditional, negative, 3.0)  # type: ignore[arg-type]
    assert torch.equal(guided, torch.full_like(latents, 4.0))
    plain = guided_velocity(model, latents, sigma, conditional, None, 1.0)  # type: ignore[arg-type]
    assert torch.equal(plain, torch.full_like(latents, 2.0))
    assert model.batches == [4, 2]
    with pytest.raises(ValueError, match="negative is missing"):
        guided_velocity(model, latents, sigma, conditional, None, 3.0)  # type: ignore[arg-type]
