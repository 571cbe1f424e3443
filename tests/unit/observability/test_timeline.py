"""The timeline's files survive kills, stay bounded, and say the same as its metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlvid.observability.append_log import AppendLog, drop_torn_line
from rlvid.observability.metrics import check_names
from rlvid.observability.timeline import STEPS_FILE, TRACE_FILE, open_timeline
from rlvid.observability.trace import Trace, older, read_events, read_totals


def one_step(folder: Path) -> dict[str, float]:
    """The learner waits 1 s, works 3 s; of two actors one works all the time, one comes at 2 s."""
    timeline = open_timeline(folder, now_s=100.0, unix_s=5000.0)
    timeline.busy("rollout/a", "sample", 100.0, group="000000-0000")
    timeline.waits("learner", "rollout", 100.0)
    timeline.waits("learner", "rollout", 100.5)
    timeline.busy("learner", "learn", 101.0)
    timeline.busy("rollout/a", "sample", 102.0, group="000000-0001")
    timeline.waits("rollout/b", "learner", 102.0)
    timeline.wasted("stale", videos=4, seconds=2.0)
    timeline.restarted("rollout", 103.0, reason="its actor died")
    metrics = timeline.step_done(1, 104.0, videos=8, staleness={0: 1, 1: 3})
    timeline.close(104.0)
    return metrics


def test_step_is_summed_up_with_what_still_goes_on(tmp_path: Path) -> None:
    """At the end of a step actors are in the middle of a group; that is no idle time."""
    metrics = one_step(tmp_path)
    check_names(metrics)
    expected = {
        "idle/learner/frac": 0.25,
        "idle/learner/on_rollout_frac": 0.25,
        "idle/rollout/frac": 2.0 / 6.0,
        "idle/rollout/on_learner_frac": 2.0 / 6.0,
        "overlap/rollout/seconds": 4.0 * 4.0 / 6.0,
        "overlap/learner/seconds": 3.0,
        "overlap/step/over_ideal": 4.0 / 3.0,
        "reward_pool/exposed_tail/seconds": 0.0,
        "rollout/videos/per_s": 2.0,
        "stale/0/count": 1.0,
        "stale/1/count": 3.0,
        "ft/rollout/restarts": 1.0,
        "ft/lost/seconds": 0.0,
        "ft/ettr/frac": 1.0,
        "waste/stale/videos": 4.0,
        "waste/stale/seconds": 2.0,
    }
    assert metrics == pytest.approx(expected)


def test_trace_has_every_interval_in_unix_time(tmp_path: Path) -> None:
    one_step(tmp_path)
    events = json.loads((tmp_path / TRACE_FILE).read_text().rstrip(",\n") + "]")
    spans = [
        (e["tid"], e["name"], e["cat"], e["ts"] / 1e6, e["dur"] / 1e6, e["args"])
        for e in events
        if e["ph"] == "X"
    ]
    assert spans == [
        ("learner", "waits for rollout", "wait", 5000.0, 1.0, {}),
        ("rollout/a", "sample", "work", 5000.0, 2.0, {"group": "000000-0000"}),
        ("rollout/a", "sample", "work", 5002.0, 2.0, {"group": "000000-0001"}),
        ("learner", "learn", "work", 5001.0, 3.0, {}),
        ("rollout/b", "waits for learner", "wait", 5002.0, 2.0, {}),
    ]


def test_interval_across_two_steps_is_split_between_them(tmp_path: Path) -> None:
    timeline = open_timeline(tmp_path, now_s=0.0)
    timeline.busy("rollout/a", "sample", 0.0)
    first = timeline.step_done(1, 1.0)
    timeline.waits("rollout/a", "learner", 1.5)
    second = timeline.step_done(2, 2.0)
    assert first["idle/rollout/frac"] == 0.0
    assert second["idle/rollout/frac"] == pytest.approx(0.5)


def test_actor_that_is_away_is_not_idle(tmp_path: Path) -> None:
    """A replacement that loads its model is counted as missing, not as waiting."""
    timeline = open_timeline(tmp_path, now_s=0.0)
    timeline.busy("rollout/a", "sample", 0.0)
    timeline.away("rollout/a", 1.0)
    timeline.busy("rollout/a", "sample", 3.0)
    assert timeline.step_done(1, 4.0)["idle/rollout/frac"] == 0.0
    timeline.away("rollout/a", 4.0)
    assert "idle/rollout/frac" not in timeline.step_done(2, 5.0)


def test_step_that_ended_before_what_was_said_since(tmp_path: Path) -> None:
    """The loop hears of a step's end after the fact; what came later belongs to the next step."""
    timeline = open_timeline(tmp_path, now_s=0.0)
    timeline.busy("rollout/a", "sample", 0.0)
    timeline.away("rollout/a", 3.0)
    timeline.waits("rollout/b", "learner", 3.0)
    assert timeline.step_done(1, 2.0)["idle/rollout/frac"] == 0.0
    second = timeline.step_done(2, 4.0)
    assert second["idle/rollout/frac"] == pytest.approx(0.5)


def test_rows_beside_the_roles_are_in_the_trace_alone(tmp_path: Path) -> None:
    timeline = open_timeline(tmp_path, now_s=0.0)
    timeline.work("evaluate", "heldout", 0.0, 1.0)
    assert not [name for name in timeline.step_done(1, 1.0) if "evaluate" in name]
    timeline.close(1.0)
    assert read_totals(tmp_path / TRACE_FILE)[0].role == "evaluate"


def test_share_in_the_policy_goes_on_over_a_restart(tmp_path: Path) -> None:
    """Two steps of 1 s; a new driver 2 s later does the second again: 2 of 5 s are kept."""
    timeline = open_timeline(tmp_path, now_s=0.0, unix_s=1000.0)
    timeline.step_done(1, 1.0)
    timeline.step_done(2, 2.0)
    timeline.close(2.0)
    again = open_timeline(tmp_path, now_s=70.0, unix_s=1004.0)
    metrics = again.step_done(2, 71.0)
    assert metrics["ft/ettr/frac"] == pytest.approx(2.0 / 5.0)
    assert metrics["ft/lost/seconds"] == pytest.approx(3.0)


def test_learner_that_went_back_loses_what_it_had_done(tmp_path: Path) -> None:
    timeline = open_timeline(tmp_path, now_s=0.0)
    timeline.step_done(1, 1.0)
    timeline.step_done(2, 2.0)
    timeline.restarted("learner", 3.0, lost_s=1.0, reason="rank 0 died")
    timeline.went_back(1, 3.0)
    metrics = timeline.step_done(2, 4.0)
    assert metrics["ft/ettr/frac"] == pytest.approx(2.0 / 4.0)
    assert metrics["ft/learner/restarts"] == 1.0


def test_start_of_a_run_is_no_way_back(tmp_path: Path) -> None:
    """The loop says where it begins each time; the first time nothing is lost by it."""
    timeline = open_timeline(tmp_path, now_s=0.0)
    timeline.went_back(0, 3.0)
    assert timeline.step_done(1, 4.0)["ft/ettr/frac"] == 1.0


def test_row_knows_how_long_it_is_at_it(tmp_path: Path) -> None:
    timeline = open_timeline(tmp_path, now_s=0.0)
    timeline.waits("learner", "rewards", 1.0)
    timeline.waits("learner", "rewards", 2.0)
    assert timeline.seconds_in_state("learner", 4.0) == 3.0
    assert timeline.seconds_in_state("rollout/a", 4.0) == 0.0


def test_step_line_names_window_and_metrics(tmp_path: Path) -> None:
    one_step(tmp_path)
    lines = (tmp_path / STEPS_FILE).read_text().splitlines()
    row = json.loads(lines[1])
    assert (row["step"], row["start_s"], row["end_s"]) == (1, 5000.0, 5004.0)
    assert row["metrics"]["idle/learner/frac"] == 0.25


def test_trace_is_rotated_and_keeps_its_sums(tmp_path: Path) -> None:
    """A run of weeks must not fill the disk, and its totals must still be of the whole run."""
    path = tmp_path / "trace.json"
    with Trace(path, max_events=50) as trace:
        for number in range(500):
            trace.add(f"rollout/actor-{number % 3}.0", "sample", float(number), 1.0)
    assert len(list(read_events(path))) <= 51
    assert sorted(file.name for file in tmp_path.iterdir()) == ["trace.1.json", "trace.json"]
    assert len(list(read_events(older(path)))) == 50
    (total,) = read_totals(path)
    assert (total.role, total.work, total.seconds, total.count) == ("rollout", "sample", 500.0, 500)
    json.loads(path.read_text().rstrip(",\n") + "]")


def test_crash_inside_a_rotation_loses_no_sums(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with Trace(path, max_events=50) as trace:
        for number in range(60):
            trace.add("learner", "learn", float(number), 1.0)
    path.rename(path.with_suffix(".part"))
    with Trace(path) as trace:
        trace.add("learner", "learn", 60.0, 1.0)
    assert read_totals(path)[0].count == 61


def test_events_are_written_in_bunches(tmp_path: Path) -> None:
    now = [0.0]
    log = AppendLog(tmp_path / "log", bunch=3, bunch_s=1.0, clock=lambda: now[0])
    log.add("1")
    log.add("2")
    assert not log.path.exists()
    log.add("3")
    assert log.path.read_text() == "1\n2\n3\n"
    log.add("4")
    now[0] = 1.5
    log.flush_if_due()
    assert log.path.read_text() == "1\n2\n3\n4\n"


def test_line_cut_by_a_crash_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with Trace(path) as trace:
        trace.add("learner", "learn", 0.0, 1.0)
    with path.open("a") as file:
        file.write('{"name": "learn", "ph"')
    with Trace(path) as trace:
        trace.add("learner", "learn", 1.0, 1.0)
    assert read_totals(path)[0].count == 2
    json.loads(path.read_text().rstrip(",\n") + "]")


@pytest.mark.parametrize(("text", "kept"), [("", ""), ("ab", ""), ("a\nb", "a\n"), ("a\n", "a\n")])
def test_torn_line_is_dropped(tmp_path: Path, text: str, kept: str) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    drop_torn_line(path)
    assert path.read_text() == kept


def test_torn_line_longer_than_a_block_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("first\n" + "x" * 200_000)
    drop_torn_line(path)
    assert path.read_text() == "first\n"


def test_full_disk_does_not_end_the_run(tmp_path: Path) -> None:
    """The trace is for people; checkpoints say it when the disk is full."""
    log = AppendLog(Path("/dev/full"))
    log.add("one")
    assert log.num_lost == 1
    log.close()
