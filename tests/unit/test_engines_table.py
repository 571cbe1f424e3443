"""The table of engines compares like with like."""

from __future__ import annotations

import pytest

from rlvid.config.loader import load_recipe
from rlvid.flow.step_plans import make_step_plan
from rlvid.launch.groups import recipe_sigmas
from rlvid.launch.planner import learned_forwards
from rlvid.launch.preflight import preflight
from rlvid.models.policy import Policy
from tests.bench import engines_table
from tests.bench.engines_table import ENGINES, RECIPE, TREES, drift, summary


def test_every_engine_runs_and_has_as_many_samples() -> None:
    recipes = {name: load_recipe(RECIPE, tuple(changes)) for name, changes in ENGINES.items()}
    for name, recipe in recipes.items():
        assert recipe.algorithm.use == ("grpo" if name in TREES else name)
        preflight(recipe)
    sizes = {
        (r.grpo.num_steps, r.rollout.groups_per_step, r.rollout.group_size)
        for r in recipes.values()
    }
    assert len(sizes) == 1


def test_forwards_that_the_table_speaks_of() -> None:
    """Of a group, guidance apart: one row for each state that is trained from."""
    published = (*ENGINES["branch"], "rollout.step_plan.between=sde")
    trained = {}
    for name, changes in {**ENGINES, "published": published}.items():
        recipe = load_recipe(RECIPE, tuple(changes))
        plans = [
            make_step_plan(
                recipe.rollout,
                recipe_seed=0,
                prompt_id="a",
                step=step,
                sigmas=recipe_sigmas(recipe, recipe.rollout.num_denoising_steps),
            )
            for step in range(6)
        ]
        trained[name] = sum(learned_forwards(recipe, plan) for plan in plans) / len(plans)
    assert {name: trained[name] for name in (*TREES, "published")} == {
        "tempflow": 2,
        "tempflow_each": 4,
        "branch": 7,
        "branch_mix": 13,
        "branch_pruned": 21,
        "published": 29,
    }


def test_base_has_not_drifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines_table, "DRIFT_PROMPTS", 1)
    recipe = load_recipe(RECIPE, ())
    assert drift(recipe, Policy(model_path=recipe.model.path)) == 0.0


def test_line_of_an_engine() -> None:
    """Two seeds by hand: gains 0.1 and 0.3, t of one degree of freedom is 12.706."""
    runs = [
        {
            "samples": 10,
            "cpu_minutes": 2.0 * seed,
            "drift": 0.5,
            "rows": {
                "reward": {
                    "trained": True, "before": 0.5, "after": 0.0, "difference": gain,
                    "low": 0.0, "high": 0.0,
                }
            },
        }
        for seed, gain in ((1, 0.1), (2, 0.3))
    ]  # fmt: skip
    line = summary("nft", runs)
    assert (line["samples"], line["cpu_minutes"], line["drift"]) == (10, 3.0, 0.5)
    row = line["gains"]["reward"]
    assert row["gain"] == 0.2
    half = 12.706 * (0.02**0.5) / 2**0.5
    assert row["interval"] == pytest.approx([0.2 - half, 0.2 + half], abs=1e-3)
