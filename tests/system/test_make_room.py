"""A run that is asked to make room drains, writes a checkpoint, exits with 75 and goes on later."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvid.launch.control.status import RunStatus, read_status
from rlvid.launch.ledger import NO_SPREAD, open_ledger
from rlvid.launch.preemption import EXIT_STATUS
from rlvid.learners.checkpoint import find_latest
from rlvid.observability.recorder import read_rows
from tests.system.conftest import merged
from tests.system.sleeping_run import SLEEPING

GROUPS = 2
NUM_STEPS = 2
SMALL = {
    "rollout": {"groups_per_step": GROUPS},
    "rewards": {"scorers": [{"use": "sleeping", "config": {"score_s": 0.025}}]},
    "grpo": {"num_steps": NUM_STEPS},
    "evaluate": {"judges": [{"use": "sleeping", "name": "judge"}]},
}
"""No checkpoint is due but the one that is written for the occasion; one process scores, since its
scorers ask for nothing of their own."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_run_makes_room_and_the_same_command_goes_on_with_it(tmp_path: Path) -> None:
    """Also under --restarts, which must not take it for a crash."""
    longer = {"grpo": {"num_steps": 4}, "cluster": {"grace_s": 60.0}}
    command = command_of(longer, tmp_path)
    said = stop_when(command, tmp_path / "run", lambda status: status.step >= 1)
    assert "preempted: asked to make room (SIGTERM): the checkpoint after step" in said
    assert "restart 1 of 1" not in said
    assert 1 <= step_of_checkpoint(tmp_path / "run") < 4
    assert rows_to_the_end(command, tmp_path / "run") == [1, 2, 3, 4]


def test_an_evaluation_there_is_no_time_for_is_made_by_what_resumes(tmp_path: Path) -> None:
    """The step's row waits for it, so that no curve has a gap or a step twice.

    Also under --restarts, which must not take the exit for a crash.
    """
    slow = {
        "rollout": {"worker_options": {"sample_s": 1.5}},
        "grpo": {"evaluate_every": 1, "evaluate_prompts": 4},
        "cluster": {"grace_s": 3.0},
    }
    command, run = command_of(slow, tmp_path), tmp_path / "run"
    said = stop_when(command, run, lambda status: status.state == "evaluating" and status.step == 1)
    assert "preempted: asked to make room (SIGTERM): the checkpoint after step 1 is" in said
    assert "restart 1 of 1" not in said
    assert step_of_checkpoint(run) == 1
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [0]
    assert rows_to_the_end(command, run) == [0, 1, 2]
    rows = read_rows(run / "metrics.jsonl")
    measured = [row["step"] for row in rows if "heldout/reward/mean" in row["metrics"]]
    assert measured == [0, 1, 2]
    assert all("time/step/seconds" in row["metrics"] for row in rows[1:])


def command_of(tree: dict[str, Any], folder: Path) -> list[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(merged(SLEEPING, SMALL, tree)))
    command = [sys.executable, "-m", "rlvid.launch.cli", "run", str(recipe)]
    return [*command, "--run-folder", str(folder / "run"), "--resume-if-exists", "--restarts", "1"]


def stop_when(command: list[str], run: Path, is_time: Callable[[RunStatus], bool]) -> str:
    """Start, send SIGTERM when the status says so, and return what was said until the exit."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver:
        give_up = time.monotonic() + 150.0
        while not (run / "status.json").exists() or not is_time(read_status(run)):
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < give_up, "it did not come to that"
            time.sleep(0.05)
        driver.send_signal(signal.SIGTERM)
        _, said = driver.communicate(timeout=100.0)
    assert driver.returncode == EXIT_STATUS, said
    return said


def step_of_checkpoint(run: Path) -> int:
    latest = find_latest(run / "phases" / "00_grpo" / "checkpoints")
    assert latest is not None
    return latest.step


def rows_to_the_end(command: list[str], run: Path) -> list[int]:
    """Run it to the end, check that the ledger is even, and return the steps of its rows."""
    assert subprocess.run(command, timeout=150.0, check=False).returncode == 0
    ledger = open_ledger(run / "phases" / "00_grpo" / "ledger.sqlite")
    counts, reasons = ledger.counts(), ledger.drop_reasons()
    ledger.close()
    assert counts.is_balanced
    assert counts.in_flight == 0
    steps = [row["step"] for row in read_rows(run / "metrics.jsonl")]
    assert counts.consumed + reasons.get(NO_SPREAD, 0) == GROUPS * max(steps)
    return steps
