"""What reward weighting and the realism anchor are worth, on the tiny default. Prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.gigavideo_arms --keep FOLDER

For each seed the data engine makes one data set; every arm is fine-tuned on it and evaluated in the
same pairs. Costs are CPU-minutes of all processes of a run; those of the data set (rendering and
scoring) are given by themselves and are part of every arm's cost, those of an evaluation are too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlvid.launch.run import artifacts_of
from tests.bench.marked_cpu import recipe_minutes
from tests.bench.timing import environment, t_interval

RECIPE = "gigavideo_tiny_cpu"
PLAIN = ("sft.weighting.kind=uniform", "sft.anchor.beta=0.0")
ARMS: Mapping[str, Sequence[str]] = {
    "plain": PLAIN,
    "filtered": (*PLAIN, "sft.weighting.best_frac=0.25"),
    "weighted": ("sft.anchor.beta=0.0",),
    "anchored": ("sft.weighting.kind=uniform",),
    "weighted_and_anchored": (),
}
"""What each changes in the recipe, whose own settings are the last one's. The one before it says
what of the last one's gain is the real clips' and what the weights'."""
RESULT = "arm.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--keep", type=Path, help="folder for the runs; else a temporary one")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="of the recipe, for all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gigavideo_") as name:
        folder = arguments.keep or Path(name)
        runs = []
        for seed in range(arguments.seeds):
            changes = [f"seed={seed}", *arguments.changes]
            dataset, made = data_set(folder / f"data-{seed}", arguments.recipe, changes)
            for arm in arguments.arms:
                settings = [*changes, f"sft.clips={dataset}", *ARMS[arm]]
                run = folder / f"{arm}-{seed}"
                found = run_phases(run, arguments.recipe, "[sft,evaluate]", settings)
                runs.append({"arm": arm, "seed": seed, "data": made, **found, **rows_of(run)})
    result = {
        "environment": environment(torch.device("cpu")),
        "recipe": arguments.recipe,
        "changes": arguments.changes,
        "runs": runs,
        "arms": {arm: summary([r for r in runs if r["arm"] == arm]) for arm in arguments.arms},
    }
    print(json.dumps(result, indent=1))


def data_set(run: Path, recipe: str, changes: Sequence[str]) -> tuple[str, dict[str, float]]:
    """Make the data set of a seed, unless it is there; return its folder and what it cost."""
    cost = run_phases(run, recipe, "[data_engine]", changes)
    [folder] = artifacts_of(run).datasets.values()
    return folder, cost


def run_phases(run: Path, recipe: str, phases: str, changes: Sequence[str]) -> dict[str, float]:
    """Run phases of the recipe, unless the folder has them finished; return what they cost."""
    written = run / RESULT
    if not written.exists():
        minutes = recipe_minutes(run, recipe, [f"phases={phases}", *changes])
        timings = {f"{k[3:]}_s": round(v, 1) for k, v in artifacts_of(run).timings_s.items()}
        written.write_text(json.dumps({"cpu_minutes": round(minutes, 2), **timings}))
    found: dict[str, float] = json.loads(written.read_text())
    return found


def rows_of(run: Path) -> dict[str, Any]:
    """Return every row of the evaluation: before, after, difference and its interval."""
    [path] = run.glob("phases/*_evaluate/evaluation.json")
    keys = ("trained", "before", "after", "difference", "low", "high")
    rows = json.loads(path.read_text())["rows"]
    return {"rows": {row["name"]: {key: row[key] for key in keys} for row in rows}}


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean differences over the seeds, with Student's t where there are several."""
    names = runs[0]["rows"]
    table = {}
    for name in names:
        values = [run["rows"][name]["difference"] for run in runs]
        low, high = t_interval(values)
        table[name] = {
            "before": statistics.fmean(run["rows"][name]["before"] for run in runs),
            "difference": round(statistics.fmean(values), 4),
            "interval": [round(low, 4), round(high, 4)],
        }
    judged = [name for name in names if name != "dimensions" and not names[name]["trained"]]
    fell = {name for name in judged for run in runs if run["rows"][name]["high"] < 0.0}
    cost = statistics.fmean(run["cpu_minutes"] + run["data"]["cpu_minutes"] for run in runs)
    return {
        "rows": table,
        "fell_in_some_seed": sorted(fell),
        "share_that_did_not_fall": round(1.0 - len(fell) / len(judged), 3),
        "cpu_minutes": round(cost, 1),
    }


if __name__ == "__main__":
    main()
