"""Does training one step ahead reach what synchronous training reaches? Prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.overlapped_training

The quickstart with three recipe seeds, once synchronous and once with `max_staleness: 1`: the same
prompts, seeds and number of samples, and in the end the same paired evaluation on held-out prompts
with the pinned sampler. `overlapped_minus_synchronous` is of the held-out reward at the end, paired
by seed, with the 95 % interval of Student's t over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from rlvid.observability.recorder import read_rows
from tests.bench.timing import environment, t_interval

MODES = {"overlapped": 1, "synchronous": 0}
"""Name to `rollout.max_staleness`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default="quickstart_cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("changes", nargs="*", metavar="key=value", help="of the recipe, for both")
    parser.add_argument("--keep", type=Path, help="folder for the runs; else a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="overlapped_") as name:
        folder = arguments.keep or Path(name)
        runs = [
            train(folder / f"{mode}-{seed}", arguments.recipe, mode, seed, arguments.changes)
            for seed in range(arguments.seeds)
            for mode in MODES
        ]
    result = {
        "environment": environment(torch.device("cpu")),
        "recipe": arguments.recipe,
        "changes": arguments.changes,
        "runs": runs,
        "overlapped_minus_synchronous": difference(runs),
    }
    print(json.dumps(result, indent=1))


def train(run: Path, recipe: str, mode: str, seed: int, changes: list[str]) -> dict[str, Any]:
    """Run the recipe, unless the folder has it finished, and return what came of it."""
    if not (run / "report.html").exists():
        settings = [f"seed={seed}", f"rollout.max_staleness={MODES[mode]}", *changes]
        command = [sys.executable, "-m", "rlvid.launch.cli", "run", recipe, *settings]
        subprocess.run(
            [*command, "--run-folder", str(run), "--resume-if-exists"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    [evaluation] = run.glob("phases/*_evaluate/evaluation.json")
    rows = [row["metrics"] for row in read_rows(run / "metrics.jsonl")]
    steps = [row for row in rows if "time/step/seconds" in row]
    return {
        "mode": mode,
        "seed": seed,
        "steps": len(steps),
        "groups_learned": int(sum(row["rollout/groups/consumed"] for row in steps)),
        "median_step_s": round(statistics.median(row["time/step/seconds"] for row in steps), 2),
        "mean_staleness": round(
            statistics.fmean(row["rollout/staleness/mean"] for row in steps), 3
        ),
        "learner_idle_frac": round(statistics.fmean(row["idle/learner/frac"] for row in steps), 3),
        "heldout": {
            row["name"]: {key: round(row[key], 4) for key in ("before", "after", "difference")}
            | {"interval": [round(row["low"], 4), round(row["high"], 4)]}
            | {"win_rate": round(row["win_rate"], 3)}
            for row in json.loads(evaluation.read_text())["rows"]
            if row["name"] == "reward" or not row["trained"]
        },
    }


def difference(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean over seeds of overlapped minus synchronous, and its interval."""
    after = {(run["mode"], run["seed"]): run["heldout"]["reward"]["after"] for run in runs}
    pairs = [
        after["overlapped", seed] - after["synchronous", seed]
        for mode, seed in after
        if MODES[mode]
    ]
    mean = statistics.fmean(pairs)
    if len(pairs) < 2:
        return {"mean": round(mean, 4), "interval": None}
    low, high = t_interval(pairs)
    return {"mean": round(mean, 4), "interval": [round(low, 4), round(high, 4)]}


if __name__ == "__main__":
    main()
