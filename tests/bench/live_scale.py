"""Scales a live run from 2 rollout actors to 6 and back to 1; prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.live_scale

`rlvid scale` on a real overlapped run, once with roles that sleep and once with the tiny model. By
the run's own timeline, of every actor that joins: seconds until its first group was sampled, from
the command and from its own turn, since on few cores they start one after another. At the end no
group may be lost: issued = consumed + dropped, each leased once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from rlvid.launch.control.status import RunStatus, read_status
from rlvid.launch.ledger import open_ledger
from rlvid.observability.trace import MICRO, read_events
from tests.bench.chaos import account_of
from tests.bench.timing import environment
from tests.system.conftest import SMALL, merged
from tests.system.sleeping_run import SLEEPING

ROOM: dict[str, Any] = {
    "phases": ["grpo"],
    "rollout": {"num_actors": 2, "max_staleness": 1, "groups_per_step": 12},
    "grpo": {"evaluate_every": 0, "checkpoint": {"every": 1000}},
    "cluster": {"num_cpus": 16},
}
CASES = {
    "sleeping": merged(
        SLEEPING,
        ROOM,
        {"rollout": {"worker_options": {"sample_s": 0.5}}, "grpo": {"num_steps": 40}},
    ),
    "tiny model": merged(SMALL, ROOM, {"grpo": {"num_steps": 40}}),
    "tiny model, spares": merged(
        SMALL, ROOM, {"rollout": {"num_spares": 4}, "grpo": {"num_steps": 60}}
    ),
}
BEGIN = {"tiny model, spares": 30}
"""Step at which it is scaled up, where that is not at once: spares are made one after another."""
SCALES = (6, 1)
WAIT_S = 300.0


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="live_scale_") as name:
        cases = {
            case: measure(tree, Path(name) / case, BEGIN.get(case, 2))
            for case, tree in CASES.items()
        }
    result = {"environment": environment(torch.device("cpu")), "scales": [2, *SCALES], **cases}
    print(json.dumps(result, indent=1))


def measure(tree: dict[str, Any], run: Path, step: int) -> dict[str, Any]:
    """Run once, scale on the way from `step` on, and return what came of it."""
    recipe = run.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(tree))
    cli = [sys.executable, "-m", "rlvid.launch.cli"]
    command = [*cli, "run", str(recipe), "--run-folder", str(run)]
    scaled_at = []
    with subprocess.Popen(command, stdout=sys.stderr, stderr=subprocess.DEVNULL) as driver:
        for wanted in SCALES:
            wait(driver, run, lambda status, step=step: status.step >= step)  # type: ignore[misc]
            scaled_at.append(time.time())
            subprocess.run(
                [*cli, "scale", str(run), "--rollouts", str(wanted)], check=True, stdout=sys.stderr
            )
            if wanted > 2:
                wait(driver, run, lambda status: num_open(status) == max(SCALES))
                step = read_status(run).step + 2
        status = driver.wait(timeout=WAIT_S)
    [path] = run.glob("phases/*_grpo/ledger.sqlite")
    ledger = open_ledger(path)
    leased_again = sum(ledger.num_leases(row[0]) > 1 for row in ledger.account())
    ledger.close()
    return {
        "exit_status": status,
        **first_groups(path.with_name("trace.json"), scaled_at[0]),
        "groups_leased_more_than_once": leased_again,
        "ledger": account_of(run),
    }


def wait(
    driver: subprocess.Popen[bytes], run: Path, condition: Callable[[RunStatus], bool]
) -> None:
    """Return when the run's status fulfils it."""
    end = time.monotonic() + WAIT_S
    while not (run / "status.json").exists() or not condition(read_status(run)):
        if driver.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{run}: it did not come to that; exit status {driver.returncode}")
        time.sleep(0.1)


def num_open(status: RunStatus) -> int:
    return sum(status.actor_states.values()) - status.actor_states.get("starting", 0)


def first_groups(trace: Path, since: float) -> dict[str, list[float]]:
    """Return when the actors that joined after `since` had their first group, in their order.

    The turn of the first begins at `since`, that of each other when the one before had loaded.
    """
    opened: dict[str, float] = {}
    first: dict[str, float] = {}
    for event in read_events(trace):
        row, start = event["tid"], event["ts"] / MICRO
        if not row.startswith("rollout/"):
            continue
        opened[row] = min(start, opened.get(row, start))
        if event["name"] == "sample":
            end = start + event["dur"] / MICRO
            first[row] = min(end, first.get(row, end))
    joined = sorted((row for row, start in opened.items() if start > since), key=opened.__getitem__)
    turns = [since, *(opened[row] for row in joined)]
    return {
        "first_group_after_command_s": [round(first[row] - since, 2) for row in joined],
        "first_group_after_own_turn_s": [
            round(first[row] - turn, 2) for row, turn in zip(joined, turns, strict=False)
        ],
    }


if __name__ == "__main__":
    main()
