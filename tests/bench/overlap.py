"""Step time with costs fixed by sleeping roles: lock-step, and one step ahead; prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.overlap

The real loop, Ray actors, reward pool and learner group; their workers sleep. A step of 10 groups
costs 1.0 s of sampling, 0.5 s of scoring, 1.0 s of training and 0.1 s until an actor has taken a
publish. One step ahead the ideal is the longest of them; in lock-step every group is still scored
and trained while others are sampled, and what remains is exposed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.bench.timing import environment
from tests.system.conftest import merged
from tests.system.sleeping_run import SLEEPING

STAGES_S = {"sample": 1.0, "score": 0.5, "train": 1.0, "push": 0.1}
WARM_UP = 5
"""Steps left out: the first one waits for nothing but itself."""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="overlap_") as name:
        cases = [case(Path(name) / f"s{staleness}", staleness) for staleness in (0, 1, 2)]
    print(
        json.dumps(
            {
                "environment": environment(torch.device("cpu")),
                "stages_s": STAGES_S,
                "ideal_s": max(STAGES_S.values()),
                "cases": cases,
            },
            indent=1,
        )
    )


def case(run: Path, max_staleness: int) -> dict[str, Any]:
    """Run 40 steps and return the median step and the learner's and actors' idle shares."""
    tree = merged(
        SLEEPING, {"rollout": {"max_staleness": max_staleness}, "grpo": {"num_steps": 40}}
    )
    recipe = run.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "rlvid.launch.cli", "run", str(recipe)]
    command += ["--run-folder", str(run)]
    subprocess.run(command, check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL)
    [path] = run.glob("phases/*_grpo/steps.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [row for row in rows if row.get("step", 0) > WARM_UP]
    seconds = [row["end_s"] - row["start_s"] for row in steps]
    mean_s = (steps[-1]["end_s"] - steps[0]["start_s"]) / len(steps)
    return {
        "max_staleness": max_staleness,
        "steps": len(steps),
        "mean_s": round(mean_s, 4),
        "median_s": round(statistics.median(seconds), 4),
        "longest_s": round(max(seconds), 4),
        "over_ideal": round(mean_s / max(STAGES_S.values()), 4),
        "learner_idle_frac": round(_mean(steps, "idle/learner/frac"), 4),
        "rollout_idle_frac": round(_mean(steps, "idle/rollout/frac"), 4),
    }


def _mean(steps: list[dict[str, Any]], name: str) -> float:
    return statistics.fmean(step["metrics"].get(name, 0.0) for step in steps)


if __name__ == "__main__":
    main()
