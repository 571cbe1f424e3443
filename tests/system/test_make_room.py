"""A run that is asked to make room drains, writes a checkpoint, exits with 75 and goes on later."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvid.launch.ledger import open_ledger
from rlvid.launch.preemption import EXIT_STATUS
from rlvid.learners.checkpoint import find_latest
from rlvid.observability.recorder import read_rows

NUM_STEPS = 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_makes_room_and_the_same_command_goes_on_with_it(
    small_tree: dict[str, Any], tmp_path: Path
) -> None:
    """With no checkpoint due but the one it writes for the occasion, and under --restarts."""
    tree = {**small_tree, "phases": ["grpo"], "cluster": {"grace_s": 300.0}}
    tree["grpo"] = {**tree["grpo"], "num_steps": NUM_STEPS, "checkpoint": {"every": 100}}
    tree["rollout"] = {**tree["rollout"], "num_actors": 1, "group_size": 2}
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "rlvid.launch.cli", "run", str(recipe)]
    command += ["--run-folder", str(run), "--resume-if-exists", "--restarts", "1"]

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver:
        give_up = time.monotonic() + 400.0
        while not (run / "metrics.jsonl").exists() or not read_rows(run / "metrics.jsonl"):
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < give_up, "no step was finished"
            time.sleep(0.05)
        driver.send_signal(signal.SIGTERM)
        _, said = driver.communicate(timeout=300.0)
    assert driver.returncode == EXIT_STATUS, said
    assert "preempted: asked to make room (SIGTERM): the checkpoint after step" in said
    assert "restart 1 of 1" not in said
    latest = find_latest(run / "phases" / "00_grpo" / "checkpoints")
    assert latest is not None
    assert 1 <= latest.step < NUM_STEPS

    done = subprocess.run(command, timeout=500.0, check=False)
    assert done.returncode == 0
    rows = [row for row in read_rows(run / "metrics.jsonl") if row["phase"] == "00_grpo"]
    assert [row["step"] for row in rows] == [1, 2, 3]
    counts = open_ledger(run / "phases" / "00_grpo" / "ledger.sqlite").counts()
    assert counts.in_flight == 0
    assert counts.issued == counts.consumed + counts.dropped == 2 * NUM_STEPS
