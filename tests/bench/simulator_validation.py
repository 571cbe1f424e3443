"""The simulator against the real loop: Ray, real pools, roles that sleep for given seconds.

    python -m tests.bench.simulator_validation [--actors 1,2,4,8] [--staleness 0,1] [--steps 10]

Each case is a whole `rlvid run` of sleeping actors, a sleeping scorer and a sleeping learner. Step
time and the learner's idle share, means of all steps but the first ones, stand beside what
`rlvid.launch.simulate` predicts: from what the roles were told to sleep (accepted within 5 % of the
step time), and, as `from_stages`, from what the run says that its stages took. The latter counts
for a group its share of a scorer's call, which is less than it waited where calls take several.
Decoding, Ray's round trips and the driver's turns are in neither but by that: use a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from rlvid.launch.simulate.costs import Cost, CostModel, parse_costs
from rlvid.launch.simulate.of_recipe import measured_costs
from rlvid.launch.simulate.plan import SimulationPlan
from rlvid.launch.simulate.run import simulate
from tests.bench.timing import environment

RESULTS = Path(__file__).parent / "results" / "simulator_validation.json"
ACCEPTED = 0.05
GROUPS = 8
SAMPLE_S, REWARD_S, TRAIN_S, PUBLISH_S, STAGE_S = 1.0, 0.1, 2.0, 0.05, 0.1
"""Of a group, a group, a step, a publish in the learner, a publish at an actor."""
LATENTS = (16, 1, 1, 1)
DEADLINE_S = 900.0


def recipe_of(num_actors: int, max_staleness: int, num_steps: int) -> dict[str, Any]:
    return {
        "name": f"sleeping-{num_actors}-{max_staleness}",
        "phases": ["grpo"],
        "rollout": {
            "worker": "sleeping",
            "worker_options": {
                "sample_s": SAMPLE_S,
                "stage_s": STAGE_S,
                "latent_shape": list(LATENTS),
            },
            "num_actors": num_actors,
            "num_cpus": 0.1,
            "groups_per_step": GROUPS,
            "group_size": 2,
            "num_denoising_steps": 4,
            "max_staleness": max_staleness,
        },
        "rewards": {
            "colocate": True,
            "scorers": [{"use": "sleeping", "config": {"score_s": REWARD_S, "per": "call"}}],
        },
        "learner": {
            "worker": "sleeping",
            "sleeping": {"train_s": TRAIN_S, "publish_s": PUBLISH_S},
            "num_cpus": 0.1,
        },
        "grpo": {
            "num_steps": num_steps,
            "evaluate_every": 0,
            "checkpoint": {"every": num_steps},
        },
    }


def costs() -> CostModel:
    return parse_costs(
        {
            "sample_s": SAMPLE_S,
            "reward_s": REWARD_S,
            "train_s": TRAIN_S / GROUPS,
            "gather_s": PUBLISH_S,
            "push_s": STAGE_S,
            "start_s": 1.0,
        },
        "validation",
    )


def measure(
    num_actors: int, max_staleness: int, num_steps: int
) -> tuple[dict[str, float], CostModel]:
    """Run the recipe; return mean step time and learner idle share, and what its stages took."""
    with tempfile.TemporaryDirectory(prefix="validation-") as name:
        folder = Path(name)
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(recipe_of(num_actors, max_staleness, num_steps)))
        command = [sys.executable, "-m", "rlvid.launch.cli", "run", str(recipe)]
        command += ["--run-folder", str(folder / "run")]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        measured = measured_costs(folder / "run")
    rows = [json.loads(line)["metrics"] for line in lines]
    steps = [row for row in rows if "time/step/seconds" in row][max_staleness + 2 :]
    found = {
        "step_s": statistics.fmean(row["time/step/seconds"] for row in steps),
        "learner_idle_frac": statistics.fmean(row["idle/learner/frac"] for row in steps),
    }
    # Actors never answer at one instant.
    staged = Cost(mean_s=STAGE_S, shape="lognormal", cv=0.05)
    pushed = {"push_s": staged, "start_s": Cost(mean_s=1.0)}
    return found, measured.model_copy(update=pushed)


def predict(num_actors: int, max_staleness: int, costs: CostModel) -> dict[str, float]:
    result = simulate(
        replace(
            SimulationPlan(),
            num_steps=50,
            groups_per_step=GROUPS,
            num_actors=num_actors,
            max_staleness=max_staleness,
            costs=costs,
        )
    )
    return {"step_s": result.step_s, "learner_idle_frac": result.learner_idle_frac}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", default="1,2,4,8")
    parser.add_argument("--staleness", default="0,1")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    cases: list[dict[str, Any]] = []
    for bound in map(int, arguments.staleness.split(",")):
        for num in map(int, arguments.actors.split(",")):
            load = os.getloadavg()[0]
            measured, took = measure(num, bound, arguments.steps)
            predicted = predict(num, bound, costs())
            error = measured["step_s"] / predicted["step_s"] - 1.0
            case = {
                "num_actors": num,
                "max_staleness": bound,
                "measured": measured,
                "predicted": predicted,
                "from_stages": predict(num, bound, took),
                "stages_s": {
                    "sample": took.sample_s.mean_s,
                    "reward": took.reward_s.mean_s,
                    "train": took.train_s.mean_s,
                },
                "step_error_frac": round(error, 4),
                "load_before": load,
            }
            sys.stdout.write(json.dumps(case) + "\n")
            sys.stdout.flush()
            cases.append(case)
            found = {
                "environment": environment(torch.device("cpu")),
                "accepted": ACCEPTED,
                "cases": cases,
            }
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if any(abs(float(str(case["step_error_frac"]))) > ACCEPTED for case in cases) else 0


if __name__ == "__main__":
    sys.exit(main())
