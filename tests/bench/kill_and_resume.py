"""Kills the driver at random moments, resumes, and compares with the uninterrupted run; JSON.

OMP_NUM_THREADS=1 python -m tests.bench.kill_and_resume --kills 20

Real Ray, DeepSpeed and the tiny model at `max_staleness: 0`. Every trial is a run of its own: the
driver is killed by SIGKILL at a moment drawn uniformly from the length of the undisturbed run, then
resumed to its end. Parameters, optimiser, average, RNG and ledger must be the same, bit for bit. A
run that ends before its moment comes is compared too, and is no kill: another one is made for it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.bench.timing import environment
from tests.system.conftest import SMALL, merged
from tests.system.same_run import differences

CHANGES = {
    "phases": ["grpo"],
    "rollout": {"num_actors": 2, "groups_per_step": 3},
    "learner": {"ema": {"every": 1}},
    "grpo": {"num_steps": 8, "evaluate_every": 3, "checkpoint": {"every": 2, "keep": 2}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="kill_and_resume_") as name:
        folder = Path(name)
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(merged(SMALL, CHANGES)))
        whole = folder / "whole"
        started = time.monotonic()
        finish(command(recipe, whole))
        whole_s = time.monotonic() - started
        trials: list[dict[str, Any]] = []
        while sum(found["was_killed"] for found in trials) < arguments.kills:
            run = folder / f"run-{len(trials)}"
            trials.append(trial(recipe, whole, run, draw.uniform(0.0, whole_s)))
    result = {
        "environment": environment(torch.device("cpu")),
        "uninterrupted_s": round(whole_s, 1),
        "trials_made": len(trials),
        "kills": sum(found["was_killed"] for found in trials),
        "identical": sum(not found["differences"] for found in trials),
        "trials": trials,
    }
    print(json.dumps(result, indent=1))


def trial(recipe: Path, whole: Path, run: Path, kill_after_s: float) -> dict[str, Any]:
    """Kill one run, resume it, and return what differs from the whole one."""
    process = subprocess.Popen(command(recipe, run), stdout=sys.stderr, stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    steps = len(list(run.glob("phases/*_grpo/checkpoints/step-*")))
    resumed = time.monotonic()
    finish([*command(recipe, run), "--resume-if-exists"])
    found = {
        "kill_after_s": round(kill_after_s, 2),
        "was_killed": process.returncode == -signal.SIGKILL,
        "checkpoints_then": steps,
        "resumed_s": round(time.monotonic() - resumed, 1),
        "differences": differences(whole, run),
    }
    print(json.dumps(found), file=sys.stderr)
    shutil.rmtree(run)
    return found


def finish(command: list[str]) -> None:
    """Run it to its end; what it prints is not the result."""
    subprocess.run(command, check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL)


def command(recipe: Path, run: Path) -> list[str]:
    return [sys.executable, "-m", "rlvid.launch.cli", "run", str(recipe), "--run-folder", str(run)]


if __name__ == "__main__":
    main()
