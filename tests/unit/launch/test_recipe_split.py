"""The split of shipped recipes on named clusters, and what the command line says of it."""

from __future__ import annotations

import pytest

from rlvid.config.loader import load_recipe
from rlvid.launch.cli_plan import print_plan
from rlvid.launch.estimate.cluster_split import Problem, best_split
from rlvid.launch.estimate.gpu_cluster import assume_cluster, read_cluster
from rlvid.launch.estimate.recipe_split import overrides, split_problem
from rlvid.launch.estimate.render_split import split_lines
from rlvid.launch.planner import plan

RECIPE = "wan2.1_14b_lora"


def test_14b_on_half_of_its_gpus() -> None:
    """Teams of 4 ranks stay whole; 2 GPUs hold critics and judges.

    The overrides load, and the planner finds nothing to add to what they give.
    """
    recipe, cluster = load_recipe(RECIPE), read_cluster("4x8xH200")
    assumed = assume_cluster(cluster, [])
    problem = split_problem(recipe, plan(recipe), assumed, cluster)
    assert problem is not None
    assert not problem.own_fits
    best = best_split(problem)
    assert best is not None
    changed = overrides(recipe, best)
    expected = ["rollout.num_actors=25", "rewards.decode_replicas=1", "learner.num_ranks=4"]
    assert sorted(changed) == sorted(expected)
    again = load_recipe(RECIPE, changed)
    lines = split_lines(again, _problem(RECIPE, changed), cluster, price=2.0)
    assert "the recipe's split is the best" in lines


def test_14b_does_not_fit_a_48_gb_gpu() -> None:
    recipe = load_recipe(RECIPE)
    with pytest.raises(ValueError, match="no number of processes fits .* actors"):
        print_plan(recipe, [], cluster="8x8xL40S")


def test_recipe_for_cpus_has_nothing_to_split() -> None:
    with pytest.raises(ValueError, match="rollout.num_gpus is 0"):
        print_plan(load_recipe("quickstart_cpu"), [], cluster="1x8xH100")


def _problem(name: str, changed: list[str]) -> Problem:
    recipe, cluster = load_recipe(name, changed), read_cluster("4x8xH200")
    problem = split_problem(recipe, plan(recipe), assume_cluster(cluster, []), cluster)
    assert problem is not None
    return problem
