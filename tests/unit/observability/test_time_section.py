"""The report says where the time went, from the files a timeline left behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlvid.observability.intervals import Interval
from rlvid.observability.report import ReportData, build_report
from rlvid.observability.share_charts import binned, histogram, share_charts, shares_of
from rlvid.observability.time_charts import MAX_ROWS, natural, rows_chart, rows_of
from rlvid.observability.time_section import (
    LAST_STEPS,
    PhaseTime,
    StepTime,
    facts,
    over_ideal,
    read_phase_time,
    staleness,
    waits,
)
from rlvid.observability.timeline import open_timeline


@pytest.fixture
def phase(tmp_path: Path) -> PhaseTime:
    """Ten steps of 4 s: 1 s waiting for rollout, 1 s for rewards, 2 s learning; actors 2 s busy."""
    timeline = open_timeline(tmp_path, now_s=0.0, unix_s=1000.0)
    for step in range(10):
        start = 4.0 * step
        timeline.busy("rollout/actor-0.0", "sample", start, group=f"{step:06d}-0000")
        timeline.waits("learner", "rollout", start)
        timeline.waits("rollout/actor-0.0", "learner", start + 2.0)
        timeline.waits("learner", "rewards", start + 1.0)
        timeline.busy("learner", "learn", start + 2.0)
        if step == 5:
            timeline.restarted("rollout", start + 3.0, reason="died")
            timeline.wasted("late", videos=4, seconds=1.5)
        timeline.step_done(step + 1, start + 4.0, videos=8, staleness={step % 2: 3})
    timeline.close(40.0)
    found = read_phase_time(tmp_path)
    assert found is not None
    return found


def test_phase_is_read_back_with_the_last_steps_in_detail(phase: PhaseTime) -> None:
    assert [step.step for step in phase.steps] == list(range(1, 11))
    assert phase.steps[0].start_s == 1000.0
    starts = sorted(interval.start_s for interval in phase.intervals)
    assert starts[0] == pytest.approx(1000.0 + 4.0 * (10 - LAST_STEPS))


def test_facts_name_shares_and_whom_was_waited_for(phase: PhaseTime) -> None:
    found = {fact.name: (fact.value, fact.note) for fact in facts(phase)}
    assert found["learner idle"] == ("50.0%", "waited for rewards 25.0%, rollout 25.0%")
    assert found["actors idle"] == ("50.0%", "waited for learner 50.0%")
    assert found["step over ideal"][0] == "2.00"
    assert found["reward tail of a step"][0] == "1.00 s"
    assert found["wall time in the policy"] == ("100.0%", "0 s lost; restarts: rollout 1")
    assert found["sampled for nothing"] == ("4 videos", "1.5 s of work; 4 late")


def test_ideal_of_a_run_is_not_the_mean_of_its_steps_ideals() -> None:
    """The busiest role may change from step to step; over the run one of them is the busiest."""
    loads = [{"learner": 1.0, "rollout": 3.0}, {"learner": 3.0, "rollout": 1.0}]
    steps = [
        StepTime(
            step=number,
            start_s=4.0 * number,
            end_s=4.0 * number + 4.0,
            metrics={f"overlap/{role}/seconds": load for role, load in of_step.items()},
        )
        for number, of_step in enumerate(loads)
    ]
    assert over_ideal(steps) == pytest.approx(2.0)


def test_long_step_weighs_more_in_the_mean() -> None:
    steps = [
        StepTime(step=1, start_s=0.0, end_s=1.0, metrics={"idle/learner/on_rewards_frac": 1.0}),
        StepTime(step=2, start_s=1.0, end_s=4.0, metrics={}),
    ]
    assert waits(steps, "learner") == {"rewards": pytest.approx(0.25)}


def test_staleness_of_all_steps_is_one_histogram(phase: PhaseTime) -> None:
    assert staleness(phase.steps) == {0: 15, 1: 15}
    assert "15 groups 1 versions behind" in histogram({0: 15, 1: 15})
    assert histogram({}) == ""


def test_shares_of_a_step_make_one(phase: PhaseTime) -> None:
    shares = {(kind, whom): share for kind, whom, share in shares_of(phase.steps, "learner")}
    assert shares == pytest.approx(
        {("work", "learner"): 0.5, ("wait", "rewards"): 0.25, ("wait", "rollout"): 0.25}
    )


def test_many_steps_are_binned_and_none_is_left_out() -> None:
    steps = [StepTime(step=n, start_s=n, end_s=n + 1.0, metrics={}) for n in range(1001)]
    bins = binned(steps, 120)
    assert len(bins) <= 120
    assert [step for group in bins for step in group] == steps


def test_rows_chart_draws_every_interval_where_it_was(phase: PhaseTime) -> None:
    """Two work bars and three waits a step; the first bar starts at the left margin."""
    chart = rows_chart(phase, LAST_STEPS)
    assert len(re.findall('class="work', chart)) == 2 * LAST_STEPS
    assert len(re.findall('class="wait', chart)) == 3 * LAST_STEPS
    places = [float(x) for x in re.findall(r'class="work c2" x="([\d.]+)"', chart)]
    assert places[0] == pytest.approx(120.0)
    assert places == sorted(places)


def test_actors_beyond_the_rows_are_counted() -> None:
    intervals = [
        Interval(row=f"rollout/actor-{n}.0", what="sample", start_s=0.0, end_s=1.0)
        for n in range(64)
    ]
    names, hidden = rows_of(intervals)
    assert hidden == 64 - MAX_ROWS
    assert names == [f"rollout/actor-{n}.0" for n in range(MAX_ROWS)]


def test_rows_sort_as_people_count() -> None:
    assert sorted(["a-10", "a-9", "a-9.1"], key=natural) == ["a-9", "a-9.1", "a-10"]


def test_report_shows_the_section_without_help_from_elsewhere(phase: PhaseTime) -> None:
    page = build_report(ReportData(title="a", summary=[], rows=[], times=[phase]))
    assert "Where the time went" in page
    assert page.count("Rollout actors") >= 1
    assert len(share_charts(phase)) == 2  # the reward pool had no row of its own
    assert "http" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)


def test_phase_without_steps_has_no_section(tmp_path: Path) -> None:
    """SFT phases keep a trace alone."""
    open_timeline(tmp_path, now_s=0.0).close(0.0)
    assert read_phase_time(tmp_path) is None
    assert "Where the time went" not in build_report(ReportData(title="a", summary=[], rows=[]))
