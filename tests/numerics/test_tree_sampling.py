"""Trees: states are shared up to where they branch, and the noise keeps its law."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.config import RolloutConfig
from rlvid.flow.sampler import GroupSample, sample_group
from rlvid.flow.step_plans import make_step_plan
from rlvid.records import StepPlan

SHAPE = (4, 3, 4, 4)


def tree_plan(group_size: int = 4, *, step: int = 0, **plan: Any) -> StepPlan:
    config = RolloutConfig.model_validate(
        {
            "shift": 3.0,
            "group_size": group_size,
            "num_denoising_steps": 6,
            "step_plan": {"kind": "tree", "split_steps": (0, 2), **plan},
        }
    )
    return make_step_plan(config, recipe_seed=0, prompt_id="ball", step=step)


def drawn(plan: StepPlan, group_size: int = 4, batches: list[int] | None = None) -> GroupSample:
    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        if batches is not None:
            batches.append(latents.shape[0])
        return latents * 0.1 - sigma.reshape(-1, 1, 1, 1, 1)

    return sample_group(
        velocity,
        plan,
        noise_seeds=[plan.noise_index(i, group_size) for i in range(group_size)],
        step_seeds=range(group_size),
        latent_shape=SHAPE,
    )


def same(states: Tensor) -> list[int]:
    """Return for each rollout the first one that is in its state."""
    return [
        next(j for j in range(len(states)) if torch.equal(states[i], states[j]))
        for i in range(len(states))
    ]


def test_states_part_at_the_splits_alone() -> None:
    """Two branches after step 0, four after step 2; between them noise is the node's."""
    plan = tree_plan()
    batches: list[int] = []
    found = drawn(plan, batches=batches)
    assert plan.num_nodes == (2, 2, 4, 4, 4)
    assert plan.trained_steps == (0, 1, 2, 3, 4)
    assert batches == [1, 2, 2, 4, 4, 4]
    assert found.num_forwards == sum(batches)
    after = [same(found.trained_next_latents[:, j]) for j in range(5)]
    assert after == [[0, 0, 2, 2]] * 2 + [[0, 1, 2, 3]] * 3
    assert torch.equal(found.trained_latents[:, 1], found.trained_next_latents[:, 0])
    assert not torch.equal(found.behaviour_mean[0, 1], found.trained_next_latents[0, 1])


def test_a_group_can_hold_several_trees() -> None:
    """Eight rollouts of four leaves each start from two noises, which are rivals at step 0."""
    plan = tree_plan(8, split_steps=(1, 3))
    assert (plan.num_noises, plan.num_nodes) == (2, (2, 4, 4, 8, 8))
    assert plan.trained_steps == (0, 1, 2, 3, 4)
    found = drawn(plan, 8)
    assert same(found.trained_latents[:, 0]) == [0] * 4 + [4] * 4
    assert len(set(same(found.latents))) == 8


def test_a_root_without_rivals_is_not_trained() -> None:
    plan = tree_plan(2, split_steps=(2,))
    assert (plan.stochastic_steps, plan.trained_steps) == ((0, 1, 2, 3, 4), (2, 3, 4))
    assert plan.num_nodes == (1, 1, 2, 2, 2)


def test_ode_between_the_splits_adds_no_noise() -> None:
    plan = tree_plan(between="ode")
    assert plan.stochastic_steps == plan.trained_steps == (0, 2)
    assert plan.num_nodes == (2, 4)
    assert [plan.nodes_before(j, 4) for j in range(6)] == [1, 2, 2, 4, 4, 4]


@pytest.mark.parametrize(
    ("step", "stochastic"),
    [(0, (0, 1, 2)), (9, (0, 1, 2)), (10, (0, 1, 2)), (20, (0, 2, 3)), (30, (0, 2, 3, 4))],
)
def test_a_window_of_its_own_adds_noise_to_steps_that_do_not_branch(
    step: int, stochastic: tuple[int, ...]
) -> None:
    """Splits 0 and 2 always; the window is (0, 1), (1, 2), (2, 3), (3, 4) and starts over."""
    plan = tree_plan(between="window", num_steps=2, window_every=10, step=step)
    assert plan.stochastic_steps == plan.trained_steps == stochastic
    assert plan == tree_plan(between="window", num_steps=2, window_every=10, step=step + 40)
    found = drawn(plan)
    assert len(set(same(found.latents))) == 4
    assert found.num_forwards == 1 + 2 + 2 + 4 + 4 + 4
    assert plan.num_nodes == tuple(2 if j < 2 else 4 for j in stochastic)


def test_a_window_ahead_of_the_first_split_is_not_trained() -> None:
    """Its steps have noise, but no rivals yet."""
    plan = tree_plan(2, split_steps=(3,), between="window", num_steps=2)
    assert (plan.stochastic_steps, plan.trained_steps) == ((0, 1, 3), (3,))


@pytest.mark.parametrize(("step", "trained"), [(0, (0, 1, 2)), (30, (0, 1, 2)), (29, (0, 1, 2))])
def test_no_more_is_pruned_than_lies_behind_the_last_split(
    step: int, trained: tuple[int, ...]
) -> None:
    assert tree_plan(pruned_steps=2, window_every=30, step=step).trained_steps == trained


@pytest.mark.parametrize(("step", "pruned"), [(0, 4), (29, 4), (30, 3), (60, 3)])
def test_the_pruned_window_moves_to_the_last_split(step: int, pruned: int) -> None:
    plan = tree_plan(pruned_steps=1, window_every=30, step=step)
    assert set(plan.stochastic_steps) - set(plan.trained_steps) == {pruned}


def test_children_share_a_part_of_their_noise() -> None:
    """Variance 1 each, correlation 1 / (1 + s^2) among siblings: 0.5 at s = 1, none at None.

    192 elements of 200 draws: the standard error of a correlation is 0.005.
    """
    for scale, expected in ((1.0, 0.5), (None, 0.0)):
        plan = tree_plan(2, split_steps=(0,), branch_scale=scale, between="ode")
        pairs = []
        for seed in range(200):
            found = sample_group(
                lambda latents, sigma: torch.zeros_like(latents),
                plan,
                noise_seeds=[0, 0],
                step_seeds=[2 * seed, 2 * seed + 1],
                latent_shape=SHAPE,
            )
            step = found.trained_next_latents[:, 0] - found.behaviour_mean[:, 0]
            pairs.append(step.flatten(1))
        first, second = torch.cat(pairs, dim=1)
        assert float(torch.corrcoef(torch.stack([first, second]))[0, 1]) == pytest.approx(
            expected, abs=0.02
        )
        assert float(first.std() / second.std()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        ({"split_steps": (0, 2, 3)}, "multiple of 8"),
        ({"split_steps": (2, 0)}, "ascending"),
        ({"split_steps": ()}, "ascending"),
        ({"split_steps": (0, 5)}, "at most 4"),
        ({"pruned_steps": 3}, "at most 2"),
        ({"pruned_steps": 1, "between": "ode"}, "at most 0"),
        ({"pruned_steps": 1, "between": "window"}, "at most 0"),
        ({"num_steps": 6, "between": "window"}, "num_steps must be at most 5"),
        ({"branch_at": "each"}, "branch_at is not read by kind tree, but by branch"),
    ],
)
def test_trees_that_cannot_be_are_refused(plan: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        tree_plan(**plan)
