"""Traces can be summed up after a crash, and progress reads well without a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from rlvid.observability.progress import duration_text, open_progress, step_line
from rlvid.observability.trace import Trace, read_totals


def test_totals_add_up_by_role_and_work(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.json")
    trace.add("actor-0", "sample", 100.0, 2.0)
    trace.add("actor-0", "sample", 102.0, 3.0)
    trace.add("learner", "learn", 105.0, 1.5, {"step": 1})
    totals = read_totals(trace.path)
    assert [(t.role, t.work, t.seconds, t.count) for t in totals] == [
        ("actor-0", "sample", 5.0, 2),
        ("learner", "learn", 1.5, 1),
    ]


def test_killed_run_leaves_a_readable_trace(tmp_path: Path) -> None:
    """The last line is cut; a resumed run appends after it without a second opening bracket."""
    trace = Trace(tmp_path / "trace.json")
    trace.add("a", "x", 0.0, 1.0)
    text = trace.path.read_text()
    assert json.loads(text.rstrip(",\n") + "]")[0]["dur"] == 1_000_000
    trace.path.write_text(text + '{"name": "x", "ph"')
    assert read_totals(trace.path)[0].seconds == 1.0


def test_span_is_recorded_when_its_block_fails(tmp_path: Path) -> None:
    """The step that failed is the one whose time is wanted."""
    trace = Trace(tmp_path / "trace.json")
    with pytest.raises(RuntimeError), trace.span("learner", "learn", step=1):
        raise RuntimeError
    assert read_totals(trace.path)[0].count == 1


def test_step_line_reads_well() -> None:
    metrics = {
        "rollout/reward/mean": 0.5321,
        "rollout/reward/std": 0.1009,
        "learner/clip/frac": 0.0312,
        "time/sample/seconds": 6.12,
        "time/step/seconds": 9.0,
    }
    assert step_line("grpo", 3, 30, metrics, 185.0) == (
        "grpo  3/30  reward 0.532  +- 0.101  clip 3.1%  sample 6.1s  step 9.0s  ETA 3 min 05 s"
    )


def test_without_a_terminal_there_are_plain_lines() -> None:
    """A CI log must not be full of cursor movements."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, width=80)
    with open_progress("sft", 2, console=console) as progress:
        progress.step_done(0, {"sft/loss/mean": 0.25})
        progress.step_done(1, {"sft/loss/mean": 0.125})
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("sft 2/2  loss 0.1250")
    assert "\x1b" not in out.getvalue()


def test_durations_read_well() -> None:
    assert [duration_text(s) for s in (41.6, 185, 7800)] == ["42 s", "3 min 05 s", "2 h 10 min"]
