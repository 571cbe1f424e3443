"""`rlvid scale`, `rlvid drain` and `rlvid top`, as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from rlvid.launch.cli_control import replicas_of
from rlvid.launch.control.channel import open_inbox
from rlvid.launch.control.commands import ScaleCommand
from rlvid.launch.control.status import (
    ActorStatus,
    LearnerStatus,
    RunEvent,
    RunStatus,
    ScorerStatus,
    StatusWriter,
)
from rlvid.launch.control.top_view import render, sparkline

ROOT = Path(__file__).resolve().parents[3]


def rlvid(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "rlvid.launch.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def a_status(**changes: object) -> RunStatus:
    fields: dict[str, object] = {
        "run": "a_run", "phase": "grpo", "state": "running", "step": 3, "num_steps": 10,
        "version": 3, "max_staleness": 1, "groups": {"leased": 2, "consumed": 24},
        "actors": (
            ActorStatus(actor_id="actor-0.0", state="busy", doing="000003-0001", version=2),
            ActorStatus(actor_id="actor-1.0", state="idle", doing="learner [v4]", version=3),
        ),
        "actor_states": {"busy": 1, "idle": 1},
        "scorers": (ScorerStatus(name="physics", replicas=2, queue=5, p95_s=0.5),),
        "learner": LearnerStatus(state="idle", doing="rollout of 000003-0001", since_s=0.4),
        "staleness": {0: 4, 1: 8},
        "rates": {"idle/learner/frac": 0.25, "idle/learner/on_rollout_frac": 0.2},
        "rewards": (0.1, None, 0.3),
        "events": (RunEvent(time_s=time.time() - 70, kind="lost", text="actor-1: [Errno 2]"),),
    }  # fmt: skip
    return RunStatus(**(fields | changes))  # type: ignore[arg-type]


def text_of(status: RunStatus, age_s: float = 0.0, width: int = 120, height: int = 40) -> str:
    console = Console(record=True, width=width, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(render(status, age_s, width=width, height=height), highlight=False)
    return console.export_text()


def test_scale_prints_what_the_driver_answers(tmp_path: Path) -> None:
    StatusWriter(tmp_path).write(a_status(), now_s=0.0)
    inbox = open_inbox(tmp_path)
    found: list[ScaleCommand] = []

    def drive() -> None:
        deadline = time.monotonic() + 30
        while not found and time.monotonic() < deadline:
            for command in inbox.poll():
                assert isinstance(command, ScaleCommand)
                inbox.answer(command, ok=True, message="6 rollout actors wanted, 2 are up")
                found.append(command)
            time.sleep(0.02)

    driver = threading.Thread(target=drive)
    driver.start()
    answer = rlvid(
        "scale", str(tmp_path), "--rollouts", "6", "--scorer", "physics=2", folder=tmp_path
    )
    driver.join(30)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == "6 rollout actors wanted, 2 are up\n"
    assert (found[0].rollouts, found[0].scorers) == (6, {"physics": 2})


def test_order_without_a_live_run_is_one_line_and_status_two(tmp_path: Path) -> None:
    answer = rlvid("drain", str(tmp_path), folder=tmp_path)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert len(answer.stderr.splitlines()) == 1
    assert answer.stderr.startswith("error: run folder ")


def test_top_prints_one_frame(tmp_path: Path) -> None:
    """For scripts: no cursor movements, no colours."""
    StatusWriter(tmp_path).write(a_status(), now_s=0.0)
    answer = rlvid("top", str(tmp_path), "--once", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "\x1b" not in answer.stdout
    for part in ("a_run", "step 3/10", "actor-0.0", "000003-0001", "physics", "leased 2"):
        assert part in answer.stdout


@pytest.mark.parametrize("text", ["physics", "physics=", "=2", "physics=0", "physics=-1", "a=1.5"])
def test_scorer_that_is_no_name_and_number_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"--scorer: expected NAME=M"):
        replicas_of([text])


def test_scorer_given_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="given twice"):
        replicas_of(["physics=1", "physics=2"])


def test_frame_says_who_waits_for_whom() -> None:
    frame = text_of(a_status())
    assert "waits for rollout of 000003-0001" in frame
    assert "it waited for rollout 20%" in frame
    assert "2 (-1)" in frame  # the actor is one version behind


def test_text_of_others_is_no_markup() -> None:
    """Errors have brackets in them; taken for markup they vanish, or end the view."""
    frame = text_of(a_status())
    assert "actor-1: [Errno 2]" in frame
    assert "learner [v4]" in frame


def test_driver_that_went_silent_is_said_to_be_silent() -> None:
    assert "no sign of life for 40 s" in text_of(a_status(), age_s=40.0)
    assert "no sign of life" not in text_of(a_status(), age_s=4.0)
    assert "no sign of life" not in text_of(a_status(state="done"), age_s=40.0)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_frame_fits_its_width_and_height(width: int) -> None:
    """A line that wraps, or a frame that is too high, makes the live view flicker."""
    actors = tuple(ActorStatus(actor_id=f"actor-{i}.0", state="busy") for i in range(64))
    status = a_status(actors=actors, actor_states={"busy": 4096})
    lines = text_of(status, width=width, height=45).rstrip().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 45
    assert any("and " in line and " more" in line for line in lines)


def test_empty_status_still_makes_a_frame() -> None:
    """At the start nothing is known yet."""
    status = RunStatus(run="r", phase="grpo", state="starting", step=0, num_steps=1, version=0)
    assert "not up" in text_of(status)


def test_sparkline_keeps_gaps() -> None:
    assert sparkline([0.0, None, 1.0]) == "\u2581 \u2588"
    assert sparkline([1.0]) == ""
    assert sparkline([2.0, 2.0]) == "\u2581\u2581"
