"""The simulator against times worked out by hand; the loop that it runs is the real one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlvid.config.loader import load_recipe
from rlvid.launch.cli import app
from rlvid.launch.simulate.clock import StuckError, VirtualClock
from rlvid.launch.simulate.costs import Cost, CostModel, load_costs, parse_costs
from rlvid.launch.simulate.failures import FailureRates
from rlvid.launch.simulate.of_recipe import measured_costs, plan_of
from rlvid.launch.simulate.plan import SimulationPlan
from rlvid.launch.simulate.run import simulate
from rlvid.launch.simulate.sweep import recommendation, recommended, run_capped, sweep

GROUPS = 20


def stage_costs(**stages: Any) -> CostModel:
    """Return costs by seconds of a whole step on one actor, one reward worker, one learner."""
    given = {"sample": 1.0, "reward": 0.5, "train": 1.0, **stages}
    tree = {f"{name}_s": seconds / GROUPS for name, seconds in given.items()}
    return parse_costs({**tree, "push_s": 0.1}, "test")


def make_plan(**changes: Any) -> SimulationPlan:
    plan = SimulationPlan(num_steps=30, groups_per_step=GROUPS, costs=stage_costs())
    return replace(plan, **changes)


def test_lock_step_takes_the_sum_of_what_is_exposed() -> None:
    """Push, all sampling, the last group's reward and training; the rest hides behind sampling."""
    result = simulate(make_plan())
    assert result.step_s == pytest.approx(0.1 + 1.0 + 0.5 / GROUPS + 1.0 / GROUPS)
    assert result.staleness == {0: 30 * GROUPS}


def test_lock_step_in_one_chunk_hides_no_training() -> None:
    result = simulate(make_plan(chunk_groups=GROUPS))
    assert result.step_s == pytest.approx(0.1 + 1.0 + 0.5 / GROUPS + 1.0)
    assert result.exposed_reward_s == pytest.approx(0.5 / GROUPS)
    assert result.exposed_rollout_s == pytest.approx(0.1 + 1.0)


def test_one_ahead_takes_the_longest_stage() -> None:
    """Within 1 % of max(stage), the learner idle less than 1 %, and no group more than one old."""
    result = simulate(make_plan(max_staleness=1))
    assert result.step_s == pytest.approx(1.0, rel=0.01)
    assert result.learner_idle_frac < 0.01
    assert result.rollout_busy_frac > 0.95
    assert set(result.staleness) <= {0, 1}


@pytest.mark.parametrize("stage", ["sample", "reward", "train"])
def test_one_ahead_is_bound_by_the_slowest_stage(stage: str) -> None:
    result = simulate(make_plan(max_staleness=1, costs=stage_costs(**{stage: 2.0})))
    assert result.step_s == pytest.approx(2.0, rel=0.01)


def test_throughput_is_linear_until_the_learner_binds() -> None:
    """Sampling takes 16 s on one actor, learning 1 s: 16 actors and no more help."""
    costs = stage_costs(sample=16.0, reward=0.1)
    plan = make_plan(max_staleness=1, costs=costs, groups_per_step=GROUPS)
    rates = {num: simulate(replace(plan, num_actors=num)) for num in (1, 2, 4, 20, 40)}
    assert rates[2].videos_per_s == pytest.approx(2 * rates[1].videos_per_s, rel=0.02)
    assert rates[4].videos_per_s == pytest.approx(4 * rates[1].videos_per_s, rel=0.02)
    assert rates[40].step_s == pytest.approx(1.0, rel=0.02)
    assert rates[40].learner_idle_frac < 0.02


def test_actors_that_get_weights_one_after_the_other_begin_with_the_first_groups() -> None:
    """Four actors, eight groups in lock-step: were the first actor given groups 0 and 1, the
    learner, which takes groups in order, would wait a whole round for group 1."""
    push = Cost(mean_s=0.1, shape="lognormal", cv=0.05)
    costs = parse_costs({"sample_s": 1.0, "reward_s": 0.03, "train_s": 0.25}, "test")
    plan = SimulationPlan(num_steps=20, groups_per_step=8, num_actors=4, costs=costs)
    spread = replace(plan, costs=costs.model_copy(update={"push_s": push}))
    assert simulate(spread).step_s == pytest.approx(simulate(plan).step_s, rel=0.02)


def test_gathering_rests_the_learner() -> None:
    costs = stage_costs().model_copy(update={"gather_s": Cost(mean_s=0.25)})
    assert simulate(make_plan(max_staleness=1, costs=costs)).step_s == pytest.approx(1.25, rel=0.01)


def test_equal_seeds_give_equal_results() -> None:
    """Down to every draw, failures and re-issued groups included."""
    costs = parse_costs({"sample_s": {"mean_s": 1.0, "shape": "heavy_tail"}}, "test")
    rates = FailureRates(sample_killed=0.1, score_killed=0.1, learner_lost=0.1)
    plan = make_plan(num_actors=3, costs=costs, failures=rates, crash_budget=1000, num_steps=5)
    first, second, other = (simulate(replace(plan, seed=seed)) for seed in (1, 1, 2))
    assert replace(first, wall_clock_s=0.0) == replace(second, wall_clock_s=0.0)
    assert first.wall_s != other.wall_s


def test_drawn_costs_have_their_mean_and_spread() -> None:
    import random
    import statistics

    source = random.Random(0)
    lognormal = Cost(mean_s=2.0, shape="lognormal", cv=0.5)
    drawn = [lognormal.draw(source) for _ in range(20_000)]
    assert statistics.fmean(drawn) == pytest.approx(2.0, rel=0.02)
    assert statistics.stdev(drawn) == pytest.approx(1.0, rel=0.05)
    tail = [Cost(mean_s=2.0, shape="heavy_tail").draw(source) for _ in range(50_000)]
    assert statistics.fmean(tail) == pytest.approx(2.0, rel=0.03)
    assert max(tail) > 20.0


def test_lost_learner_costs_the_steps_since_the_checkpoint_and_no_sampling() -> None:
    """Scored groups are on disk: what is done again is training, on the same groups."""
    rates = FailureRates(learner_lost=0.2)
    plan = make_plan(failures=rates, checkpoint_every=2, max_staleness=1)
    result = simulate(plan)
    assert result.failures["learner_lost"] > 0
    assert result.wasted_sampling_frac == 0.0
    assert result.groups["consumed"] == 30 * GROUPS


def test_what_is_lost_of_wall_time_shows() -> None:
    """A learner that has to start ten times as slowly leaves less of the time in the policy."""
    rates = FailureRates(learner_lost=0.2)
    plan = make_plan(failures=rates, checkpoint_every=2)
    quick, slow = (
        simulate(
            replace(
                plan, costs=stage_costs().model_copy(update={"learner_start_s": Cost(mean_s=s)})
            )
        )
        for s in (1.0, 10.0)
    )
    assert slow.ettr < quick.ettr < 1.0


def test_an_idle_actor_is_not_simulated_and_is_paid_for() -> None:
    """At most (1 + 1) * 20 groups are on their way: the 41st actor never has one."""
    plan = make_plan(max_staleness=1, num_actors=80, num_steps=10)
    full, capped = simulate(plan), run_capped(plan)
    assert capped.step_s == pytest.approx(full.step_s)
    assert capped.cpu_hours == pytest.approx(full.cpu_hours)
    assert capped.rollout_busy_frac == pytest.approx(full.rollout_busy_frac, rel=0.01)


def test_recommends_the_freshest_schedule_that_keeps_the_learner_busy() -> None:
    found = sweep(make_plan(costs=stage_costs(sample=4.0)), actors=(1, 2, 4, 8), staleness=(0, 1))
    best = recommended(found)
    assert best is not None
    assert (best.num_actors, best.max_staleness) == (4, 1)
    assert "4 actors with max_staleness 1" in recommendation(found)


def test_says_what_binds_where_the_learner_never_does() -> None:
    found = sweep(make_plan(costs=stage_costs(reward=9.0)), actors=(1,), staleness=(1,))
    assert recommended(found) is None
    assert "busiest role: rewards" in recommendation(found)


def test_a_clock_with_nothing_under_way_is_stuck() -> None:
    clock = VirtualClock()
    clock.wait(0.5)
    clock.wait(0.5)
    with pytest.raises(StuckError, match="nothing is under way"):
        clock.wait(0.5)


def test_unknown_cost_is_named(tmp_path: Path) -> None:
    path = tmp_path / "costs.yaml"
    path.write_text("sampel_s: 3\n")
    with pytest.raises(ValueError, match=r"sampel_s.*Costs are: sample_s"):
        load_costs(path)


def test_costs_are_read_from_a_run(tmp_path: Path) -> None:
    """Seconds of a step's groups over their number; the first step, which warms up, is left out."""
    rows = [
        {
            "rollout/groups/consumed": 3.0,
            "rollout/groups/uniform": 1.0,
            "time/rollout_actors/seconds": 4.0 * seconds,
            "time/reward_pool/seconds": 2.0,
            "learner/forwards/seconds": 8.0,
            "weights/transport/seconds": 0.1,
        }
        for seconds in (100.0, 1.0, 3.0)
    ]
    lines = [json.dumps({"step": 1, "metrics": {"heldout/reward/mean": 0.0}})]
    lines += [json.dumps({"step": 1, "metrics": row}) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    costs = measured_costs(tmp_path)
    assert costs.sample_s.mean_s == pytest.approx(2.0)
    assert costs.reward_s.mean_s == pytest.approx(0.5)
    assert costs.train_s.mean_s == pytest.approx(2.0)
    assert costs.push_s.mean_s == pytest.approx(0.1)


def test_a_recipe_sets_the_schedule() -> None:
    recipe = load_recipe("quickstart_cpu", ["rollout.num_actors=3", "learner.chunk_groups=2"])
    plan = plan_of(recipe, CostModel())
    assert (plan.num_actors, plan.chunk_groups) == (3, 2)
    assert plan.groups_per_step == recipe.rollout.groups_per_step


def test_plan_simulates_on_the_command_line(tmp_path: Path) -> None:
    costs = tmp_path / "costs.yaml"
    costs.write_text("{sample_s: 1.0, reward_s: 0.1, train_s: 0.25}")
    options = ["--simulate", "--actors", "1,4", "--staleness", "0,1", "--steps", "10"]
    options += ["--costs", str(costs), "--json"]
    found = CliRunner().invoke(app, ["plan", "quickstart_cpu", *options])
    assert found.exit_code == 0, found.output
    tree = json.loads(found.stdout)
    assert [one["num_actors"] for one in tree["results"]] == [1, 4, 1, 4]
    assert tree["recommended"] == {"actors": 4, "max_staleness": 1}


def test_options_of_the_simulator_need_it() -> None:
    found = CliRunner().invoke(app, ["plan", "quickstart_cpu", "--actors", "1"])
    assert "belong to --simulate" in str(found.exception)


def test_a_list_of_numbers_is_checked() -> None:
    found = CliRunner().invoke(app, ["plan", "quickstart_cpu", "--simulate", "--actors", "0,x"])
    assert "expected whole numbers of at least 1" in str(found.exception)
