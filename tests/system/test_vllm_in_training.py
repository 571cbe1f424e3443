"""GRPO with the embedded judge behind a real vLLM server, which is killed in the middle."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlvid.config import Recipe
from rlvid.launch.ledger import open_ledger
from rlvid.launch.run import run_recipe
from rlvid.observability.recorder import read_rows
from tests.system.conftest import merged

JUDGED: dict[str, Any] = {
    "phases": ["grpo"],
    "grpo": {"num_steps": 2},
    "rollout": {"num_actors": 1, "num_denoising_steps": 2},
    "rewards": {
        "servers": {"judge": {"model": "tiny_judge", "start_deadline_s": 600.0}},
        # A restart takes 40 s on two idle cores, and several times that on busy ones; all three
        # deadlines are longer, so that the step waits for it.
        "scorers": [
            {
                "use": "vlm_judge",
                "server": "judge",
                "config": {"deadline_s": 550.0, "only": ["physics", "colour"]},
                "deadline_s": 580.0,
            }
        ],
        "deadline_s": 600.0,
        "max_missing_frac": 0.0,
    },
}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_outlives_its_judge(small_tree: dict[str, Any], tmp_path: Path) -> None:
    """The server dies after the first step: the next waits for it, loses nothing, and no clip is
    missing or 0. When the run is over, so is the server."""
    tree = merged(small_tree, JUDGED)
    run = tmp_path / "run"
    killed: list[psutil.Process] = []
    killer = threading.Thread(target=kill_after_first_step, args=(run, killed), daemon=True)
    killer.start()
    run_recipe(Recipe.model_validate(tree), run)
    killer.join(timeout=10.0)

    [server] = killed
    rows = [r for r in read_rows(run / "metrics.jsonl") if r["phase"] == "00_grpo"]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["metrics"]["rewards/vlm_judge/missing_frac"] == 0.0
        assert row["metrics"]["rollout/reward/min"] > 0.0
        assert row["metrics"]["rewards/vlm_judge/std"] > 0.0
    assert rows[-1]["metrics"]["servers/judge/restarts"] == 1.0
    counts = open_ledger(run / "phases" / "00_grpo" / "ledger.sqlite").counts()
    assert (counts.issued, counts.in_flight, counts.dropped) == (4, 0, 0)
    assert counts.consumed == 4
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    assert guards() == []


def kill_after_first_step(run: Path, killed: list[psutil.Process]) -> None:
    """Kill the API server as soon as the first step is written."""
    give_up = time.monotonic() + 1200.0
    while not (run / "metrics.jsonl").exists() or not read_rows(run / "metrics.jsonl"):
        if time.monotonic() > give_up:
            return
        time.sleep(0.05)
    [guard] = guards()
    [server] = guard.children()
    server.kill()
    killed.append(server)


def guards() -> list[psutil.Process]:
    """Guards of servers that this run started: below us in the tree of processes."""
    below = psutil.Process(os.getpid()).children(recursive=True)
    found = []
    for process in below:
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            command = process.cmdline()
            found += [process] if any(part.endswith("vllm/guard.py") for part in command) else []
    return found
