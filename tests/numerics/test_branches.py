"""Branches that leave one trajectory at each of its steps (TempFlow-GRPO)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.config import RolloutConfig
from rlvid.flow.sampler import GroupSample, sample_group, sample_ode
from rlvid.flow.step_plans import make_step_plan
from rlvid.group_digest import BRANCH_FIELDS, TREE_FIELDS, _told_of
from rlvid.learners.admission import GroupFacts
from rlvid.records import StepPlan

SHAPE = (4, 3, 4, 4)
SIZE = 12
STEPS = (1, 2, 3)


def each_plan(group_size: int = SIZE, **plan: Any) -> StepPlan:
    """Six denoising steps, branches at 1, 2 and 3; two noises of six rollouts."""
    each = {"kind": "branch", "branch_at": "each", "range_frac": (1 / 6, 4 / 6), **plan}
    config = RolloutConfig.model_validate(
        {"shift": 3.0, "group_size": group_size, "num_denoising_steps": 6, "step_plan": each}
    )
    return make_step_plan(config, recipe_seed=0, prompt_id="ball", step=0)


def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
    """Elementwise, so that the batch of a state moves no bit."""
    return latents * 0.1 - sigma.reshape(-1, 1, 1, 1, 1)


def drawn(plan: StepPlan, batches: list[int] | None = None, **settings: Any) -> GroupSample:
    def recorded(latents: Tensor, sigma: Tensor) -> Tensor:
        if batches is not None:
            batches.append(latents.shape[0])
        return velocity(latents, sigma)

    return sample_group(
        recorded,
        plan,
        noise_seeds=[plan.noise_index(i, SIZE) for i in range(SIZE)],
        step_seeds=range(SIZE),
        latent_shape=SHAPE,
        **settings,
    )


def test_every_noise_has_branches_at_every_step() -> None:
    plan = each_plan()
    assert plan.trained_steps == plan.stochastic_steps == STEPS
    assert plan.num_noises == 2
    assert plan.own_steps == (1, 1, 2, 2, 3, 3) * 2
    assert [plan.noise_index(i, SIZE) for i in range(SIZE)] == [0] * 6 + [1] * 6
    assert plan.num_recorded == 1


def test_trajectories_run_first_and_each_branch_from_its_step_on() -> None:
    """Trajectories to step 3, then four branches of step 1, eight with step 2, twelve with 3."""
    plan, batches = each_plan(), list[int]()
    found = drawn(plan, batches)
    assert batches == [2, 2, 2, 2, 4, 8, 12, 12]
    assert found.num_forwards == sum(batches)
    assert sum(plan.nodes_before(j, SIZE) for j in range(6)) == sum(batches)
    assert [plan.num_starts(j, SIZE) for j in STEPS] == [2, 2, 2]
    assert found.trained_latents.shape == (SIZE, 1, *SHAPE)
    assert found.behaviour_log_prob.shape == (SIZE, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rollout_is_that_of_a_plan_with_its_step_alone(dtype: torch.dtype) -> None:
    """Noise at one step, the ODE before and behind it. A trajectory whose states are stored in
    bfloat16 is rounded at every trained step, so only the first branches are the same there."""
    plan = each_plan()
    found = drawn(plan, dtype=dtype)
    for step in STEPS if dtype == torch.float32 else STEPS[:1]:
        alone = replace(plan, own_steps=(), stochastic_steps=(step,), trained_steps=(step,))
        expected = drawn(alone, dtype=dtype)
        members = [g for g in range(SIZE) if plan.own_steps[g] == step]
        for name in (
            "latents",
            "trained_latents",
            "trained_next_latents",
            "behaviour_mean",
            "behaviour_log_prob",
        ):
            assert torch.equal(getattr(found, name)[members], getattr(expected, name)[members])


def test_branches_of_a_step_start_from_one_state_of_the_ode() -> None:
    plan = each_plan()
    found = drawn(plan)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for step in STEPS:
        states = [found.trained_latents[g, 0] for g in (6, 7) if plan.own_steps[g] == step]
        on_the_way = sample_ode(velocity, noise[None], plan.sigmas[: step + 1])[0]
        assert all(torch.equal(state, on_the_way) for state in states)
    assert len({found.latents[g].sum().item() for g in range(SIZE)}) == SIZE


@pytest.mark.parametrize(
    ("size", "plan", "named"),
    [
        (8, {}, "expected a multiple of 6, step_plan.num_branches 2 at each of 3 steps"),
        (4, {"kind": "isotemporal"}, "branch_at is not read by kind isotemporal, but by branch"),
        (6, {"range_frac": (0.99, 1.0)}, "range_frac"),
    ],
)
def test_branches_that_cannot_be_are_refused(size: int, plan: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        each_plan(size, **plan)


def test_other_plans_are_told_without_the_steps_of_rollouts() -> None:
    """Digests of groups sampled before there were such plans stay what they were."""
    plan = each_plan()
    assert set(BRANCH_FIELDS) < set(_told_of(plan))
    assert not {*BRANCH_FIELDS, *TREE_FIELDS} & set(_told_of(replace(plan, own_steps=())))
    tree = replace(plan, own_steps=(), num_nodes=(2, 4, 8))
    assert set(TREE_FIELDS) < set(_told_of(tree))
    assert not set(BRANCH_FIELDS) & set(_told_of(tree))


def test_plan_passes_between_the_ranks() -> None:
    facts = GroupFacts(row=0, group_id="a", policy_version=0, weights_digest="b", plan=each_plan())
    assert GroupFacts.from_json(facts.to_json()) == facts
