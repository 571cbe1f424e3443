"""Tasks are functions of the recipe, so a group replays anywhere; rewards of scored groups."""

from __future__ import annotations

import pytest

from rlvid.config import Recipe
from rlvid.launch.groups import mean_rewards, pinned_task, training_task
from rlvid.seeds import prompt_id
from tests.unit.launch.hand_made import prompt, recipe, scored_group

SIZE = 4


def _recipe(seed: int = 0, initial_noise: str = "shared") -> Recipe:
    return recipe(seed=seed, rollout={"group_size": SIZE, "initial_noise": initial_noise})


def test_same_recipe_gives_the_same_task() -> None:
    """A resumed run, or one with more actors, must sample the very same groups."""
    tasks = [
        training_task(_recipe(seed=7), prompt("a"), visit=1, step=5, position=2) for _ in range(2)
    ]
    assert tasks[0] == tasks[1]
    assert tasks[0].group_id == "000005-0002"


@pytest.mark.parametrize(("seed", "text", "visit"), [(8, "a", 1), (7, "b", 1), (7, "a", 2)])
def test_seed_prompt_and_visit_each_move_the_seeds(seed: int, text: str, visit: int) -> None:
    """Else a prompt's second turn would repeat the samples of its first."""
    first = training_task(_recipe(seed=7), prompt("a"), visit=1, step=5, position=0)
    other = training_task(_recipe(seed=seed), prompt(text), visit=visit, step=5, position=0)
    assert not set(first.noise_seeds) & set(other.noise_seeds)
    assert not set(first.step_seeds) & set(other.step_seeds)


def test_place_in_the_step_moves_no_seed() -> None:
    """Which group is listed first says nothing about its noise."""
    first, other = (
        training_task(_recipe(), prompt("a"), visit=0, step=5, position=position)
        for position in (0, 3)
    )
    assert (first.noise_seeds, first.step_seeds) == (other.noise_seeds, other.step_seeds)


def test_shared_noise_is_one_seed_for_the_group() -> None:
    """All that may differ between its rollouts is the stochastic step; step seeds do."""
    task = training_task(_recipe(), prompt("a"), visit=0, step=0, position=0)
    assert len(set(task.noise_seeds)) == 1
    assert len(set(task.step_seeds)) == SIZE


def test_independent_noise_is_a_seed_for_each_rollout() -> None:
    task = training_task(
        _recipe(initial_noise="independent"), prompt("a"), visit=0, step=0, position=0
    )
    assert len(set(task.noise_seeds)) == SIZE


def test_branches_share_noise_in_pairs() -> None:
    """`num_branches` rollouts start from each of group_size / num_branches noises."""
    branched = recipe(
        rollout={"group_size": SIZE, "step_plan": {"kind": "branch", "num_branches": 2}}
    )
    seeds = training_task(branched, prompt("a"), visit=0, step=0, position=0).noise_seeds
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]


def test_no_recipe_seed_moves_a_pinned_task() -> None:
    """Runs with other seeds are compared on the same noise."""
    one, two = (
        pinned_task(_recipe(seed=seed), prompt("a"), label="base", position=3, num_seeds=2)
        for seed in (0, 1)
    )
    assert one == two
    assert one.group_id == "base-003"
    assert len(set(one.noise_seeds)) == 2


def test_pinned_task_is_deterministic_sampling() -> None:
    """No stochastic step: what differs between two policies is the policies."""
    task = pinned_task(_recipe(), prompt("a"), label="base", position=0, num_seeds=2)
    assert (task.plan.stochastic_steps, task.plan.trained_steps) == ((), ())
    assert task.plan.num_steps == _recipe().evaluate.num_denoising_steps
    assert task.plan.num_noises == 2


def test_pinned_guidance_overrides_that_of_the_rollouts() -> None:
    scales = [
        pinned_task(made, prompt("a"), label="base", position=0, num_seeds=1).guidance_scale
        for made in (
            recipe(rollout={"guidance_scale": 2.0}),
            recipe(rollout={"guidance_scale": 2.0}, evaluate={"guidance_scale": 1.0}),
        )
    ]
    assert scales == [2.0, 1.0]


def test_mean_reward_weighs_scores_and_leaves_out_missing_and_unweighted_ones() -> None:
    """(2 x - y) / 3; a judge of no weight neither counts nor makes a rollout incomplete."""
    group = scored_group("a", {"x": [1.0, 0.5, 1.0], "y": [1.0, 0.0, None], "judge": [None] * 3})
    rewards = mean_rewards([group], {"x": 2.0, "y": -1.0})
    name = prompt_id("a")
    assert rewards == pytest.approx({(name, 0): 1.0 / 3.0, (name, 1): 1.0 / 3.0})
