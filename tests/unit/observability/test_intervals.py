"""Idle shares, waits and the ideal step time, on intervals made by hand."""

from __future__ import annotations

import random

import pytest

from rlvid.observability.intervals import Interval, length, role_times, window_metrics
from rlvid.observability.metrics import check_names
from rlvid.observability.recovery import Recovery, StepWindow


def work(row: str, start_s: float, end_s: float, what: str = "work") -> Interval:
    return Interval(row=row, what=what, start_s=start_s, end_s=end_s)


def wait(row: str, on: str, start_s: float, end_s: float) -> Interval:
    return Interval(row=row, what=on, start_s=start_s, end_s=end_s, is_wait=True)


def test_lock_step_costs_the_sum_over_the_longest() -> None:
    """Sample 1.0, reward 0.5, train 1.0 after one another: nothing overlaps."""
    intervals = [
        work("rollout/a", 0.0, 1.0),
        work("rewards/physics", 1.0, 1.5),
        work("learner", 1.5, 2.5),
        wait("learner", "rollout", 0.0, 1.0),
        wait("learner", "rewards", 1.0, 1.5),
    ]
    metrics = window_metrics(role_times(intervals, {}, 0.0, 2.5), 2.5)
    check_names(metrics)
    assert metrics == {
        "idle/learner/frac": pytest.approx(0.6),
        "idle/learner/on_rollout_frac": pytest.approx(0.4),
        "idle/learner/on_rewards_frac": pytest.approx(0.2),
        "idle/rewards/frac": pytest.approx(0.8),
        "idle/rollout/frac": pytest.approx(0.6),
        "overlap/learner/seconds": pytest.approx(1.0),
        "overlap/rewards/seconds": pytest.approx(0.5),
        "overlap/rollout/seconds": pytest.approx(1.0),
        "overlap/step/over_ideal": pytest.approx(2.5),
        "reward_pool/exposed_tail/seconds": pytest.approx(0.5),
    }


def test_perfect_overlap_is_ideal() -> None:
    """The window of one step of a pipeline whose slowest stage never waits."""
    intervals = [
        work("rollout/a", -3.0, 9.0),
        work("learner", 0.2, 0.9),
        work("rewards/physics", 0.5, 0.8),
    ]
    metrics = window_metrics(role_times(intervals, {}, 0.0, 1.0), 1.0)
    assert metrics["overlap/step/over_ideal"] == pytest.approx(1.0)
    assert metrics["idle/rollout/frac"] == 0.0
    assert metrics["idle/learner/frac"] == pytest.approx(0.3)


def test_actors_are_interchangeable_and_scorers_are_not() -> None:
    """Four actors share 4 s of work; nobody can do the physics scorer's 2 s for it."""
    intervals = [
        work("rollout/a", 0.0, 2.0),
        work("rollout/b", 0.0, 2.0),
        work("rollout/c", 0.0, 0.0),
        work("rewards/physics", 2.0, 4.0),
        work("rewards/colour", 2.0, 2.5),
    ]
    presence = {f"rollout/{name}": [(0.0, 4.0)] for name in "abcd"}
    times = role_times(intervals, presence, 0.0, 4.0)
    assert times["rollout"].load_s == pytest.approx(1.0)
    assert times["rewards"].load_s == pytest.approx(2.0)
    assert times["rollout"].idle_frac == pytest.approx(0.75)
    assert times["rewards"].idle_frac == pytest.approx(1 - 2.5 / 8)


def test_pool_that_holds_up_the_others_is_not_the_ideal() -> None:
    """Else a run that waits for a slow judge all the time would be said to overlap perfectly."""
    intervals = [
        work("rewards/judge", 0.0, 4.0),
        work("rollout/a", 0.0, 1.0),
        work("learner", 1.0, 3.0),
    ]
    metrics = window_metrics(role_times(intervals, {}, 0.0, 4.0), 4.0)
    assert metrics["overlap/step/over_ideal"] == pytest.approx(2.0)


def test_calls_that_overlap_in_one_scorer_count_once() -> None:
    intervals = [work("rewards/physics", 0.0, 2.0), work("rewards/physics", 1.0, 3.0)]
    assert role_times(intervals, {}, 0.0, 4.0)["rewards"].work_s == pytest.approx(3.0)


def test_actor_that_joined_late_was_not_idle_before() -> None:
    intervals = [work("rollout/a", 0.0, 4.0), work("rollout/b", 3.0, 4.0)]
    presence = {"rollout/a": [(-9.0, 9.0)], "rollout/b": [(3.0, 9.0)]}
    time = role_times(intervals, presence, 0.0, 4.0)["rollout"]
    assert time.present_s == pytest.approx(5.0)
    assert time.idle_frac == pytest.approx(0.0)


def test_row_that_left_before_the_window_is_not_in_it() -> None:
    presence = {"rollout/a": [(0.0, 1.0)]}
    assert role_times([work("rollout/a", 0.0, 1.0)], presence, 2.0, 3.0) == {}


def test_wait_that_overlaps_work_is_not_idle_time() -> None:
    """The learner waits for a score while it publishes: nobody would gain from a faster scorer."""
    intervals = [work("learner", 0.0, 2.0), wait("learner", "rewards", 1.0, 3.0)]
    time = role_times(intervals, {}, 0.0, 4.0)["learner"]
    assert time.waits_s == {"rewards": pytest.approx(1.0)}
    assert time.idle_frac == pytest.approx(0.5)


def test_length_of_a_union() -> None:
    assert length([(3.0, 4.0), (0.0, 2.0), (1.0, 1.5), (1.0, 3.0)]) == pytest.approx(4.0)
    assert length([]) == 0.0


def step(number: int, start_s: float, end_s: float, lost_s: float = 0.0) -> StepWindow:
    return StepWindow(step=number, start_s=start_s, end_s=end_s, lost_s=lost_s)


def test_undisturbed_run_is_in_its_policy_as_a_whole() -> None:
    recovery = Recovery()
    for number in range(4):
        recovery.add(step(number + 1, number, number + 1.0))
    assert (recovery.ettr, recovery.lost_s) == (1.0, 0.0)


def test_what_was_done_again_counts_once() -> None:
    """Steps 3 and 4 are lost with the driver, 2 s later it goes on from checkpoint 2."""
    recovery = Recovery()
    for number in range(4):
        recovery.add(step(number + 1, number, number + 1.0))
    recovery.began(6.0)
    recovery.add(step(3, 6.0, 7.0))
    recovery.add(step(4, 7.0, 8.0))
    assert recovery.wall_s == pytest.approx(8.0)
    assert recovery.lost_s == pytest.approx(4.0)
    assert recovery.ettr == pytest.approx(0.5)


def test_going_back_takes_the_steps_off_at_once() -> None:
    """Before the first step is done again the share must already be down."""
    recovery = Recovery()
    for number in range(4):
        recovery.add(step(number + 1, number, number + 1.0))
    recovery.back_to(2)
    assert recovery.ettr == pytest.approx(0.5)
    recovery.back_to(2)
    assert recovery.ettr == pytest.approx(0.5)


def test_time_lost_inside_a_step_is_taken_off() -> None:
    recovery = Recovery()
    recovery.add(step(1, 0.0, 4.0, lost_s=1.0))
    assert recovery.ettr == pytest.approx(0.75)


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_those_counted_tick_by_tick(seed: int) -> None:
    """Random intervals on whole seconds, against looking at every second of every row."""
    source = random.Random(seed)
    rows = ["learner", "rollout/a", "rollout/b", "rewards/x"]
    intervals = [
        Interval(
            row=source.choice(rows),
            what=source.choice(["rollout", "rewards"]),
            start_s=(start := source.randint(-5, 25)),
            end_s=start + source.randint(0, 6),
            is_wait=source.random() < 0.5,
        )
        for _ in range(30)
    ]
    presence = {"rollout/a": [(-5.0, 12.0), (15.0, 30.0)], "rollout/b": [(3.0, 9.0)]}
    times = role_times(intervals, presence, 0.0, 20.0)

    def at(row: str, second: int, *, is_wait: bool, what: str = "") -> bool:
        return any(
            i.row == row and i.is_wait == is_wait and i.start_s <= second < i.end_s
            and what in ("", i.what)
            for i in intervals
        )  # fmt: skip

    for role, time in times.items():
        own = [row for row in rows if row.partition("/")[0] == role]
        seconds = [(row, second) for row in own for second in range(20)]
        assert time.work_s == sum(at(*place, is_wait=False) for place in seconds)
        for on, waited in time.waits_s.items():
            assert waited == sum(
                at(*place, is_wait=True, what=on) and not at(*place, is_wait=False)
                for place in seconds
            )
