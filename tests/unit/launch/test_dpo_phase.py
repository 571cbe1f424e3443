"""What the driver knows of phase dpo before it starts, and of plans that branch."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.config.loader import load_recipe
from rlvid.launch.artifact_names import check_dataset, with_artifacts
from rlvid.launch.demand import demanded
from rlvid.launch.phases.base import open_phase
from rlvid.launch.phases.dpo import OfflineDpo
from rlvid.launch.planner import forwards_per_step, plan
from rlvid.launch.preflight import preflight

RECIPE = "quickstart_cpu"


def recipe_of(*changes: str) -> Any:
    return load_recipe(RECIPE, changes)


def test_phase_is_found_by_its_name() -> None:
    assert isinstance(open_phase("dpo", 0), OfflineDpo)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("phases=[dpo]",), "dpo.pairs: phase dpo needs pairs"),
        (("phases=[dpo]", "dpo.pairs=x", "dpo.ema_is_policy=true"), "dpo.ema_is_policy"),
        (("phases=[dpo]", "dpo.pairs=artifact:dataset"), "is made by no earlier phase"),
        (("phases=[dpo]", "dpo.learner.micro_batch_rows=1"), r"dpo.*expected at least 2, got 1"),
        (("phases=[dpo, grpo]", "dpo.pairs=x"), "LoRA on top of a LoRA"),
    ],
)
def test_what_it_lacks_is_said_before_it_starts(changes: tuple[str, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        preflight(recipe_of(*changes))


def test_data_set_of_the_run_takes_the_place_of_its_name() -> None:
    recipe = recipe_of("phases=[data_engine, dpo]", "dpo.pairs=artifact:dataset")
    check_dataset(recipe)
    assert with_artifacts(recipe, {}, {"dataset": "/made"}).dpo.pairs == "/made"


def test_the_shipped_recipe_makes_its_own_pairs() -> None:
    recipe = load_recipe("dpo_tiny_cpu")
    preflight(recipe)
    assert recipe.dpo.pairs == f"artifact:{recipe.data_engine.name}"
    assert recipe.phases.index("data_engine") < recipe.phases.index("dpo")


def test_ranks_are_planned_for_and_asked_of_the_cluster() -> None:
    """A reference is held whole where all parameters are trained, and none by an adapter."""
    roles = {}
    for mode in ("lora", "full"):
        recipe = recipe_of("phases=[dpo]", "dpo.pairs=x", f"dpo.learner.mode={mode}")
        [roles[mode]] = plan(recipe).roles
    assert roles["lora"].phases == ("dpo",)
    assert roles["full"].memory_mib["weights"] > roles["lora"].memory_mib["weights"]
    greedy = recipe_of("phases=[dpo]", "dpo.pairs=x", "dpo.learner.num_cpus=64")
    assert demanded(greedy)["CPU"] == 64.0


def test_nodes_of_a_tree_are_forwarded_once() -> None:
    """Eight steps, eight leaves: 1 + 2 + 2 + 4 + 4 + 8 + 8 + 8 sampled, all but the last learned.

    Times eight groups and the two branches of guidance.
    """
    changes = ("rollout.step_plan.kind=tree", "rollout.step_plan.split_steps=[0,2,4]")
    assert forwards_per_step(recipe_of(*changes)) == (37 * 16, 29 * 16)
    assert forwards_per_step(recipe_of(*changes, "rollout.step_plan.between=ode"))[1] == 7 * 16
    pruned = (*changes, "algorithm.tree.width=best_child")
    assert forwards_per_step(recipe_of(*pruned))[1] == 29 * 16
    assert forwards_per_step(recipe_of(*pruned, "learner.replay=batched"))[1] == (29 - 2 * 4) * 16


def test_a_batched_replay_holds_the_rows_of_all_its_steps() -> None:
    """Of eight rollouts of one noise: seven steps in one forward, the first of which is one row.

    Branches of a trajectory are at its state, so each of the four steps is one row.
    """
    held = {}
    for kind in ("all", "branch"):
        for replay in ("as_sampled", "batched"):
            changes = [f"rollout.step_plan.kind={kind}", f"learner.replay={replay}"]
            if kind == "branch":
                changes.append("rollout.step_plan.branch_at=each")
            recipe = recipe_of("phases=[grpo]", *changes)
            [rank] = [role for role in plan(recipe).roles if role.role == "learner rank"]
            held[kind, replay] = rank.memory_mib["activations"]
    assert held["all", "batched"] == (1 + 6 * 8) / 8 * held["all", "as_sampled"]
    assert held["branch", "as_sampled"] == held["all", "as_sampled"] / 8
    assert held["branch", "batched"] == 4 * held["branch", "as_sampled"]


def test_branches_of_a_trajectory_share_the_forwards_of_their_steps() -> None:
    """Four steps of one noise, two branches each: four forwards of the trajectory, then 2, 4 and 6
    branches beside it and 8 at the other four steps. A gradient has one forward of each step."""
    each = ("rollout.step_plan.kind=branch", "rollout.step_plan.branch_at=each")
    sampled = 4 + 2 + 4 + 6 + 4 * 8
    assert forwards_per_step(recipe_of(*each)) == (sampled * 16, 4 * 16)
