"""Kills the driver at random moments, resumes, and compares with the uninterrupted run; JSON.

OMP_NUM_THREADS=1 python -m tests.bench.kill_and_resume --kills 20

Real Ray, DeepSpeed and the tiny model at `max_staleness: 0`. Every trial is a run of its own: the
driver is killed by SIGKILL at a moment drawn uniformly from the length of the undisturbed run, then
resumed to its end. Parameters, optimiser, average, RNG and ledger must be the same, bit for bit.
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

import torch
import yaml

from tests.bench.timing import environment
from tests.system.conftest import SMALL, merged
from tests.system.same_run import differences

CHANGES = {
    "phases": ["grpo"],
    "rollout": {"groups_per_step": 3},
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
        subprocess.run([*command(recipe, whole)], check=True, stderr=subprocess.DEVNULL)
        whole_s = time.monotonic() - started
        trials = [
            trial(recipe, whole, folder / f"run-{number}", draw.uniform(0.0, whole_s))
            for number in range(arguments.kills)
        ]
    result = {
        "environment": environment(torch.device("cpu")),
        "uninterrupted_s": round(whole_s, 1),
        "kills": len(trials),
        "identical": sum(not found["differences"] for found in trials),
        "trials": trials,
    }
    print(json.dumps(result, indent=1))


def trial(recipe: Path, whole: Path, run: Path, kill_after_s: float) -> dict[str, object]:
    """Kill one run, resume it, and return what differs from the whole one."""
    process = subprocess.Popen(command(recipe, run), stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    steps = len(list(run.glob("phases/*_grpo/checkpoints/step-*")))
    resumed = time.monotonic()
    subprocess.run(
        [*command(recipe, run), "--resume-if-exists"], check=True, stderr=subprocess.DEVNULL
    )
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


def command(recipe: Path, run: Path) -> list[str]:
    return [sys.executable, "-m", "rlvid.launch.cli", "run", str(recipe), "--run-folder", str(run)]


if __name__ == "__main__":
    main()
