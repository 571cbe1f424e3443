"""What must hold of every schedule of the loop, tried on random ones in virtual time.

`launch/simulate/schedules.py` says what is random and what must hold. Hypothesis draws the seeds
and reports the one that fails; `try_schedule(seed)` plays it again. tests/bench/loop_schedules.py
tries ten thousand.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rlvid.actors.fleet_records import RolloutLostError
from rlvid.launch.loop.schedule import chunk_size
from rlvid.launch.loop.trainer import LoopSettings
from rlvid.launch.simulate.clock import StuckError
from rlvid.launch.simulate.costs import parse_costs
from rlvid.launch.simulate.failures import FailureRates
from rlvid.launch.simulate.plan import SimulationPlan
from rlvid.launch.simulate.run import simulate
from rlvid.launch.simulate.schedules import (
    BrokenPromiseError,
    Schedule,
    random_schedule,
    run_schedule,
)

NUM_EXAMPLES = 250
SEEDS = st.integers(min_value=0, max_value=2**32 - 1)
QUICK = settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # a smaller seed is no simpler schedule
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Actors are lost by the thousand here; to note each takes longer than losing it."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@settings(QUICK, max_examples=NUM_EXAMPLES)
@given(seed=SEEDS)
def test_promises_hold_whatever_fails(seed: int) -> None:
    """Conservation, no double consumption, staleness bound, order, progress, an end."""
    run_schedule(random_schedule(seed))


def test_random_schedules_witness_every_failure() -> None:
    """A test that injected nothing would pass for nothing."""
    seen: Counter[str] = Counter()
    for seed in range(60):
        outcome = run_schedule(random_schedule(seed))
        seen.update(outcome.failures + outcome.refused)
        seen.update(repeated=outcome.steps_repeated, deaths=outcome.driver_deaths)
    expected = [name for name in FailureRates.model_fields if name != "slow_factor"]
    expected += ["lost", "late", "quarantined", "repeated", "deaths", "made_room"]
    assert [name for name in expected if seen[name] < 2] == []


@settings(QUICK, max_examples=60)
@given(
    groups=st.integers(1, 9),
    ranks=st.integers(1, 4),
    chunk=st.integers(1, 12),
    bound=st.integers(0, 4),
    actors=st.integers(1, 7),
    workers=st.integers(1, 3),
    every=st.integers(0, 3),
    streams=st.booleans(),
)
def test_no_legal_queue_setting_deadlocks(
    groups: int,
    ranks: int,
    chunk: int,
    bound: int,
    actors: int,
    workers: int,
    every: int,
    streams: bool,
) -> None:
    plan = SimulationPlan(
        num_steps=4,
        groups_per_step=groups,
        chunk_groups=chunk_size(
            groups_per_step=groups, num_ranks=ranks, chunk_groups=chunk, streams=streams
        ),
        num_ranks=ranks,
        max_staleness=bound,
        num_actors=actors,
        num_reward_workers=workers,
        checkpoint_every=every,
        evaluate_every=every,
        evaluate_groups=2,
    )
    outcome = run_schedule(Schedule(plan=plan))
    assert outcome.steps_repeated == 0


@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("groups_per_step", 0, "rollout.groups_per_step"),
        ("groups_per_step", 10_001, "rollout.groups_per_step"),
        ("max_staleness", -1, "rollout.max_staleness"),
        ("chunk_groups", 0, "learner.chunk_groups"),
        ("chunk_groups", 5, "learner.chunk_groups"),
        ("num_steps", 0, "grpo.num_steps"),
    ],
)
def test_illegal_queue_settings_are_refused_by_name(name: str, value: int, path: str) -> None:
    legal: dict[str, Any] = {
        "num_steps": 3,
        "groups_per_step": 4,
        "chunk_groups": 4,
        "max_staleness": 0,
        "incarnation": 1,
    }
    with pytest.raises(ValueError, match=rf"{path} must be from \d+ to \d+, got {value}"):
        LoopSettings(**{**legal, name: value})


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_goes_on_with_the_actors_that_live(bound: int) -> None:
    """Two of three slots kill every process; what they are given comes back."""
    plan = SimulationPlan(
        num_steps=4,
        num_actors=3,
        max_staleness=bound,
        dead_actors=frozenset({0, 2}),
        crash_budget=10_000,
    )
    run_schedule(Schedule(plan=plan))


def test_a_role_without_any_process_left_ends_the_run_with_what_to_do() -> None:
    plan = SimulationPlan(num_steps=2, num_actors=2, dead_actors=frozenset({0, 1}))
    with pytest.raises(RolloutLostError, match=r"rollout.crash_budget 3"):
        simulate(plan)


def test_a_deadline_shorter_than_sampling_ends_the_run() -> None:
    """Every group is given up and given out again: budgets end that, not patience."""
    costs = parse_costs({"sample_s": 50.0}, "test")
    plan = SimulationPlan(num_steps=2, costs=costs, deadline_s=10.0, max_deaths_per_prompt=1000)
    with pytest.raises(RolloutLostError, match=r"rollout.deadline_s|rollout.crash_budget"):
        simulate(plan)


def test_a_deadly_prompt_is_dropped_and_the_rest_is_trained() -> None:
    """Its groups, and no other ones, are dropped; it costs three actors once."""
    plan = SimulationPlan(
        num_steps=6,
        groups_per_step=4,
        num_actors=2,
        num_prompts=8,
        max_staleness=1,
        deadly_prompts=frozenset({5}),
        crash_budget=1000,
    )
    result = simulate(plan)
    assert result.groups == {"issued": 24, "consumed": 21, "dropped": 3, "in_flight": 0}
    assert result.refused["quarantined"] == 3


def test_a_step_of_quarantined_prompts_alone_does_not_stop_the_run() -> None:
    plan = SimulationPlan(
        num_steps=4,
        groups_per_step=2,
        num_prompts=4,
        deadly_prompts=frozenset({0, 1}),
        crash_budget=1000,
    )
    assert simulate(plan).groups["dropped"] == 4


# What random schedules found


def _after_losses(**changes: Any) -> Schedule:
    """A learner that is lost again and again, all its groups to be sampled anew."""
    plan = SimulationPlan(
        num_steps=6,
        groups_per_step=3,
        max_staleness=2,
        num_actors=2,
        failures=FailureRates(learner_lost=0.3),
        costs=parse_costs({"sample_s": 0.0, "push_s": 1.0, "reward_s": 0.1}, "test"),
        seed=3,
    )
    return Schedule(plan=replace(plan, **changes), kept_frac=0.0)


def test_nothing_is_sampled_with_weights_of_the_time_after_a_rewind() -> None:
    """Actors hold version 5 when step 2 is to be sampled again: it waits for the new version 2.

    Issued at once, such groups kept going between line and actors without end.
    """
    outcome = run_schedule(_after_losses())
    assert outcome.steps_repeated > 0
    assert outcome.refused["stale"] == 0


def test_a_group_that_failed_does_not_hold_up_later_weights() -> None:
    rates = FailureRates(sample_raises=0.4)
    outcome = run_schedule(_after_losses(failures=rates, max_deaths_per_prompt=1000))
    assert outcome.failures["sample_raises"] > 2


def test_a_run_that_makes_room_writes_what_its_learner_holds() -> None:
    """Fed on while it drained, the learner took a step more than the checkpoint said."""
    costs = parse_costs({"sample_s": 1.0, "reward_s": 2.0, "train_s": 0.1}, "test")
    for tenth in range(15):
        schedule = _after_losses(
            failures=FailureRates(), costs=costs, max_staleness=1, stops={11.0 + 0.3 * tenth: 6.0}
        )
        assert run_schedule(replace(schedule, kept_frac=1.0)).failures["made_room"] == 1


def test_scores_of_a_forgotten_evaluation_do_not_count_for_the_next() -> None:
    """The learner is lost while the evaluation is scored, and the evaluation is made again."""
    rates = FailureRates(learner_lost=0.5)
    costs = parse_costs({"sample_s": 0.2, "reward_s": 3.0, "learner_start_s": 0.1}, "test")
    for seed in range(5):
        run_schedule(
            _after_losses(
                failures=rates,
                costs=costs,
                evaluate_every=1,
                evaluate_groups=2,
                checkpoint_every=1,
                num_reward_workers=2,
                seed=seed,
            )
        )


def test_a_loop_that_cannot_end_is_found() -> None:
    """Reward workers that always fail: attempts follow each other, and nothing gets done."""
    plan = SimulationPlan(num_steps=1, groups_per_step=1, failures=FailureRates(score_killed=1.0))
    with pytest.raises(StuckError, match="nothing got done"):
        simulate(plan)


def test_a_broken_promise_is_found() -> None:
    """The checker itself: a ledger that loses a group must not pass."""
    schedule = random_schedule(0)
    plan = replace(schedule.plan, num_steps=2, failures=FailureRates(), dead_actors=frozenset())
    from rlvid.launch.simulate.schedules import Checker
    from rlvid.launch.simulate.world import World

    world = World(plan)
    world.run()
    Checker(plan).end(world.ledger, world.watched)
    first = random.Random(0).choice(sorted(world.ledger.states_from(0)))
    world.ledger._db.execute("DELETE FROM groups WHERE group_id = ?", (first,))
    with pytest.raises(BrokenPromiseError, match="wrong number of groups"):
        Checker(plan).end(world.ledger, world.watched)
