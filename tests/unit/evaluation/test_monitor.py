"""Alarms sound when a reward is gamed, and not when a run is honest."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from rlvid.config.alarms import AlarmsConfig, EarlyStopConfig
from rlvid.evaluation.drift import Pair, standing
from rlvid.evaluation.monitor import Finding, Memory, Monitor
from rlvid.observability.metrics import check_names

WEIGHTS = {"brightness": 1.0, "physics": 1.0, "watched": 0.0}


def monitor(memory: Memory | None = None, **sections: Any) -> Monitor:
    return Monitor(
        AlarmsConfig.model_validate(sections.get("alarms", {})),
        EarlyStopConfig.model_validate(sections.get("early_stop", {})),
        weights=WEIGHTS,
        judges=["judge"],
        min_std=1e-6,
        memory=memory,
    )


def clips(mean: float, *, noise: float = 0.1, seed: int = 0, count: int = 16) -> dict[Pair, float]:
    values = mean + noise * np.random.default_rng(seed).standard_normal(count)
    return {(f"prompt {number}", 0): float(value) for number, value in enumerate(values)}


def heldout(reward: float, judge: float, seed: int = 0) -> dict[str, dict[Pair, float]]:
    return {
        "reward": clips(reward, seed=seed),
        "brightness": clips(reward, seed=seed + 1),
        "judge": clips(judge, seed=seed + 2),
    }


def kinds(finding: Finding) -> list[str]:
    return [alarm.kind for alarm in finding.alarms]


def test_judge_that_falls_while_the_reward_rises_is_an_alarm() -> None:
    watch = monitor()
    assert kinds(watch.after_heldout(0, heldout(0.5, 0.5), {})) == []
    found = watch.after_heldout(10, heldout(0.9, 0.2, seed=7), {})
    [alarm] = found.alarms
    assert (alarm.step, alarm.kind, alarm.subject) == (10, "judge_drift", "judge")
    assert "rose: reward +0.4" in alarm.message
    assert found.metrics["alarms/judge_drift/active"] == 1.0
    assert found.metrics["heldout/judge/change_high"] < 0.0
    check_names(found.metrics)


def test_alarm_that_stays_on_is_raised_once_and_again_after_it_cleared() -> None:
    """A line every evaluation would be read by nobody."""
    watch = monitor()
    sequence = [(0.5, 0.5), (0.9, 0.2), (0.9, 0.1), (0.9, 0.5), (0.9, 0.2)]
    got = [
        kinds(watch.after_heldout(step, heldout(*both, seed=step), {}))
        for step, both in enumerate(sequence)
    ]
    assert got == [[], ["judge_drift"], [], [], ["judge_drift"]]


def test_judge_that_was_silent_at_first_is_an_alarm_and_is_watched_from_its_first_word() -> None:
    """Its server may still be starting at step 0; early stop must not be off for the whole run."""
    watch = monitor(early_stop={"judge_falls": True, "patience": 2})
    silent = {**heldout(0.5, 0.5), "judge": {}}
    assert kinds(watch.after_heldout(0, silent, {})) == ["judge_missing"]
    falling = [(0.9, 0.9), (0.9, 0.2), (0.9, 0.1)]
    found = [
        watch.after_heldout(step + 1, heldout(*both, seed=step), {})
        for step, both in enumerate(falling)
    ]
    assert found[0].metrics["alarms/judge_missing/active"] == 0.0
    assert [one.should_stop for one in found] == [False, False, True]
    assert found[0].is_best
    check_names(found[0].metrics)


def test_judge_within_its_noise_is_no_alarm() -> None:
    """200 honest runs in which the judge does not move: at 99 % at most a few false alarms.

    Expected 0.5 % a look if the interval were exact; with 16 prompts the bootstrap's is narrower.
    """
    false_alarms = 0
    for run in range(200):
        watch = monitor(alarms={"num_bootstrap": 200})
        watch.after_heldout(0, heldout(0.5, 0.5, seed=10 * run), {})
        found = watch.after_heldout(10, heldout(0.9, 0.5, seed=10 * run + 5), {})
        false_alarms += len(found.alarms)
    assert false_alarms <= 8


def test_judge_that_falls_together_with_the_reward_is_no_drift() -> None:
    """That is a run that fails, not one that games its reward."""
    watch = monitor()
    watch.after_heldout(0, heldout(0.5, 0.5), {})
    assert kinds(watch.after_heldout(10, heldout(0.1, 0.1, seed=7), {})) == []


def test_reward_of_negative_weight_rises_by_falling() -> None:
    watch = Monitor(
        AlarmsConfig(),
        EarlyStopConfig(),
        weights={"flicker": -1.0},
        judges=["judge"],
        min_std=1e-6,
    )
    watch.after_heldout(0, {"flicker": clips(0.5), "judge": clips(0.5)}, {})
    found = watch.after_heldout(9, {"flicker": clips(0.1, seed=3), "judge": clips(0.1, seed=4)}, {})
    assert kinds(found) == ["judge_drift"]


def test_one_prompt_is_too_few_to_know_the_noise() -> None:
    watch = monitor()
    watch.after_heldout(0, {"reward": {("a", 0): 0.0}, "judge": {("a", 0): 0.9}}, {})
    found = watch.after_heldout(1, {"reward": {("a", 0): 1.0}, "judge": {("a", 0): 0.0}}, {})
    assert found.alarms == []
    assert "heldout/judge/change" not in found.metrics


def test_early_stop_waits_for_its_patience_and_names_the_best_step() -> None:
    watch = monitor(early_stop={"judge_falls": True, "patience": 2})
    judge = [0.5, 0.8, 0.2, 0.5, 0.2, 0.1]
    found = [
        watch.after_heldout(step, heldout(0.5 + step / 10, value, seed=step), {})
        for step, value in enumerate(judge)
    ]
    assert [one.should_stop for one in found] == [False, False, False, False, False, True]
    assert [one.is_best for one in found] == [True, True, False, False, False, False]
    assert watch.memory.best_step == 1
    assert "policy of step 1" in found[-1].alarms[-1].message


def test_without_early_stop_nothing_stops() -> None:
    watch = monitor()
    watch.after_heldout(0, heldout(0.5, 0.5), {})
    found = [watch.after_heldout(step, heldout(0.9, 0.1, seed=step), {}) for step in range(1, 6)]
    assert not any(one.should_stop for one in found)


def test_judges_stand_in_units_of_their_own_spread() -> None:
    """A judge on a scale of 100 must not drown one on a scale of 1."""
    first = {"a": {("p", 0): 0.0, ("q", 0): 2.0}, "b": {("p", 0): 0.0, ("q", 0): 200.0}}
    now = {"a": {("p", 0): 1.0, ("q", 0): 3.0}, "b": {("p", 0): -50.0, ("q", 0): 150.0}}
    assert standing(first, now, ["a", "b"]) == pytest.approx((1.0 - 0.5) / 2)
    assert standing(first, now, ["c"]) is None


def scores(**values: Any) -> dict[str, Any]:
    return {name: np.asarray(rows, dtype=np.float64) for name, rows in values.items()}


def agreeing(seed: int, sign: float) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    one = generator.random((8, 8))
    two = sign * one + 0.1 * generator.random((8, 8))
    return scores(brightness=one, physics=two, watched=-one)


def test_rewards_that_pull_against_each_other_are_an_alarm() -> None:
    """Only trained ones count: the watched scorer opposes both and may."""
    against = monitor().after_step(1, agreeing(0, -1.0), {})
    assert [(alarm.kind, alarm.subject) for alarm in against.alarms] == [
        ("anti_correlation", "brightness~physics")
    ]
    check_names(against.metrics)
    assert against.metrics["correlation/brightness~physics/spearman_in_group"] < -0.9
    assert kinds(monitor().after_step(1, agreeing(0, 1.0), {})) == []


def test_few_rollouts_raise_no_anti_correlation() -> None:
    """Three pairs of rollouts disagree by chance one time in eight."""
    step = scores(brightness=[[0.0, 1.0]] * 3, physics=[[1.0, 0.0]] * 3)
    assert kinds(monitor().after_step(1, step, {})) == []


def test_reward_without_spread_is_an_alarm_until_it_has_one() -> None:
    watch = monitor(alarms={"correlation_window": 2})
    flat = scores(brightness=np.random.default_rng(0).random((2, 8)), physics=np.full((2, 8), 1.0))
    first = watch.after_step(1, flat, {})
    assert [(alarm.kind, alarm.subject) for alarm in first.alarms] == [("no_spread", "physics")]
    assert watch.after_step(2, flat, {}).alarms == []
    cleared = watch.after_step(3, agreeing(1, 1.0), {})
    assert cleared.metrics["alarms/no_spread/active"] == 0.0


def guards(**means: float) -> dict[str, list[float]]:
    return {name: [mean - 0.05, mean + 0.05] for name, mean in means.items()}


def test_guard_that_leaves_the_base_is_an_alarm_in_the_bad_direction_only() -> None:
    """Base 0.3 +- 0.05 and factor 2: above 0.4 alarms; less saturation than the base never does."""
    watch = monitor(alarms={"guard_factor": 2.0})
    both = agreeing(0, 1.0)
    assert kinds(watch.after_step(1, both, guards(saturation=0.3))) == []
    assert kinds(watch.after_step(2, both, guards(saturation=0.39))) == []
    found = watch.after_step(3, both, guards(saturation=0.45))
    assert [alarm.subject for alarm in found.alarms] == ["saturation of training rollouts"]
    assert found.metrics["guards/saturation/mean"] == pytest.approx(0.45)
    assert kinds(watch.after_step(4, both, guards(saturation=0.0))) == []


def test_held_out_clips_have_a_base_of_their_own() -> None:
    """They are sampled without noise, so their normal is not that of the rollouts."""
    watch = monitor()
    watch.after_step(1, agreeing(0, 1.0), guards(grid=0.1))
    assert kinds(watch.after_heldout(1, heldout(0.5, 0.5), guards(grid=0.5))) == []
    found = watch.after_heldout(2, heldout(0.5, 0.5), guards(grid=0.8))
    assert [alarm.subject for alarm in found.alarms] == ["grid of held-out clips"]
    check_names(found.metrics)


def test_resumed_monitor_goes_on_bit_for_bit() -> None:
    """Memory goes through JSON in the middle; every later finding must be the same."""

    def look(watch: Monitor, step: int) -> tuple[Finding, Finding]:
        after = watch.after_step(step, agreeing(step, -1.0), guards(grid=0.1 * step))
        held = watch.after_heldout(step, heldout(0.1 * step, 1.0 - 0.1 * step, seed=step), {})
        return after, held

    whole = monitor(early_stop={"judge_falls": True})
    for step in range(4):
        look(whole, step)
    text = json.dumps(whole.memory.to_json())
    resumed = monitor(Memory.from_json(json.loads(text)), early_stop={"judge_falls": True})
    for step in range(4, 8):
        assert look(resumed, step) == look(whole, step)


def test_step_that_lost_all_its_groups_leaves_nothing_to_look_at() -> None:
    """Every prompt of it may be quarantined; the window goes on from the steps around it."""
    watch = monitor()
    some = np.linspace(0.0, 1.0, 16).reshape(2, 8)
    watch.after_step(1, scores(a=some, b=some), {})
    assert kinds(watch.after_step(2, scores(a=np.zeros((0, 8)), b=np.zeros((0, 8))), {})) == []
    again = watch.after_step(3, scores(a=some, b=some), {})
    assert again.metrics["correlation/a~b/pearson"] == pytest.approx(1.0)
