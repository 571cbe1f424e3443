"""The planner's memory and step time against a real run of the quickstart: Ray, real processes.

    python -m tests.bench.plan_against_measured              # two cases
    python -m tests.bench.plan_against_measured --processes  # what a process takes without a model

Memory: the peak resident set of every process of a run (VmHWM), by role, the worst of each; the
plan has what `launch/host_memory.py` says of the process and `launch/memory.py` of the model. The
constants of the former come from `--processes`, a run with next to nothing to compute. Case
`quickstart` is the shipped recipe; `large` has 33 frames of 96x96, where activations show.

Step time: that of `rlvid plan --measure` (`launch/estimate/cpu_step.py`), whose forwards, decode,
trained rows and scorers are timed here right after the run, all cores at once. Use a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rlvid.config import Recipe
from rlvid.config.loader import load_recipe
from rlvid.launch.estimate.cpu_rates import group_seconds, measure_rates
from rlvid.launch.estimate.cpu_step import cpu_step
from rlvid.launch.host_memory import process_mib
from rlvid.launch.memory import MIB
from rlvid.launch.planner import plan
from rlvid.launch.role_plan import RolePlan
from tests.bench.memory_group import peak_bytes_of
from tests.bench.timing import environment

RESULTS = Path(__file__).parent / "results" / "cpu_plan_against_measured.json"
ACCEPTED_MEMORY, ACCEPTED_STEP = 0.15, 0.25
DEADLINE_S = 3600.0
LOOK_S = 0.1
TAG = "RLVID_BENCH_TAG"
"""Set in a run's environment, by which its processes are told from all others."""
KINDS = {
    b"ray::RolloutActor": "rollout actor",
    b"ray::RewardActor": "rewards",
    b"ray::LearnerActor": "learner rank",
}
"""How Ray names a worker that runs a role."""
BASE = ("phases=[grpo]", "grpo.evaluate_every=0")
CASES = {
    "quickstart": (*BASE,),
    "large": (
        *BASE,
        "model.num_frames=33",
        "model.height=96",
        "model.width=96",
        "rollout.groups_per_step=2",
        "rollout.group_size=4",
    ),
}
LEAST = (
    *BASE,
    "model.num_frames=5",
    "rollout.group_size=2",
    "rollout.num_denoising_steps=3",
)


def run_recipe(overrides: Sequence[str], folder: Path) -> dict[str, float]:
    """Run the quickstart and return the peak MiB by kind of process, "beside" being the others'."""
    tag = uuid.uuid4().hex
    command = [sys.executable, "-m", "rlvid.launch.cli", "run", "quickstart_cpu", *overrides]
    command += ["--run-folder", str(folder)]
    log = folder.with_suffix(".log")
    peaks: dict[int, tuple[str, float]] = {}
    until = time.monotonic() + DEADLINE_S
    with log.open("w") as output:
        run = subprocess.Popen(
            command, env={**os.environ, TAG: tag}, stdout=output, stderr=subprocess.STDOUT
        )
        while run.poll() is None:
            if time.monotonic() > until:
                run.terminate()
                raise RuntimeError(f"{' '.join(command)}: not at its end in {DEADLINE_S:g} s")
            note_peaks(tag.encode(), peaks)
            time.sleep(LOOK_S)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    found: dict[str, float] = defaultdict(float)
    for kind, mib in peaks.values():
        found[kind] = found[kind] + mib if kind == "beside" else max(found[kind], mib)
    return dict(found)


def note_peaks(tag: bytes, peaks: dict[int, tuple[str, float]]) -> None:
    """Take down kind and peak MiB so far of every process of a run."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if tag not in (folder / "environ").read_bytes():
                continue
            command = (folder / "cmdline").read_bytes()
            peak = peak_bytes_of(folder)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, or is somebody else's
        pid, (kind, mib) = int(folder.name), peaks.get(int(folder.name), ("beside", 0.0))
        kind = next((name for start, name in KINDS.items() if command.startswith(start)), kind)
        if peak is not None:
            peaks[pid] = (kind, max(mib, peak / MIB))


def planned_roles(recipe: Recipe) -> dict[str, RolePlan]:
    """Return the roles of a plan by kind of process."""
    roles = plan(recipe).roles
    return {next(k for k in KINDS.values() if role.role.startswith(k)): role for role in roles}


def compare_memory(recipe: Recipe, peaks: Mapping[str, float]) -> dict[str, Any]:
    """Return planned and measured MiB of each role, and by how much the plan is off."""
    return {
        kind: {
            "planned_mib": round(role.host_total_mib, 1),
            "of_which_model_mib": round(role.host_total_mib - process_mib(role.role), 1),
            "measured_mib": round(peaks[kind], 1),
            "error_frac": round(role.host_total_mib / peaks[kind] - 1.0, 3),
        }
        for kind, role in planned_roles(recipe).items()
    }


def measured_step(folder: Path) -> dict[str, float]:
    """Return the medians over the steps behind the first, which has starts in it."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line)["metrics"] for line in lines]
    steps = [row for row in rows if "time/step/seconds" in row][1:]
    names = {
        "actors_s": "time/rollout_actors/seconds",
        "rewards_s": "time/reward_pool/seconds",
        "learner_s": "learner/forwards/seconds",
        "step_s": "time/step/seconds",
    }
    return {key: statistics.median(row[name] for row in steps) for key, name in names.items()}


def run_case(overrides: Sequence[str], num_steps: int) -> dict[str, Any]:
    """Run one case and return what was planned and what was measured."""
    overrides = [*overrides, f"grpo.num_steps={num_steps}"]
    recipe = load_recipe("quickstart_cpu", overrides)
    with tempfile.TemporaryDirectory(prefix="plan-") as name:
        folder = Path(name) / "run"
        load = os.getloadavg()[0]
        peaks = run_recipe(overrides, folder)
        measured = measured_step(folder)
    rates = measure_rates(recipe)
    predicted = asdict(cpu_step(recipe, group_seconds(recipe, rates), rates.num_cores))
    return {
        "overrides": overrides,
        "memory": compare_memory(recipe, peaks),
        "beside_mib": round(peaks.get("beside", 0.0), 1),
        "rates": asdict(rates),
        "predicted": {key: round(value, 3) for key, value in predicted.items()},
        "measured": {key: round(value, 3) for key, value in measured.items()},
        "step_error_frac": round(predicted["step_s"] / measured["step_s"] - 1.0, 3),
        "load_before": load,
    }


def measure_processes() -> dict[str, float]:
    """Return MiB of a process of each kind without its model: next to nothing is computed."""
    with tempfile.TemporaryDirectory(prefix="plan-") as name:
        overrides = [*LEAST, "grpo.num_steps=4"]
        peaks = run_recipe(overrides, Path(name) / "run")
    roles = planned_roles(load_recipe("quickstart_cpu", overrides))
    models = {kind: role.host_total_mib - process_mib(role.role) for kind, role in roles.items()}
    return {kind: round(mib - models.get(kind, 0.0), 1) for kind, mib in peaks.items()}


def is_accepted(case: Mapping[str, Any]) -> bool:
    memory = all(abs(row["error_frac"]) <= ACCEPTED_MEMORY for row in case["memory"].values())
    return memory and abs(case["step_error_frac"]) <= ACCEPTED_STEP


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.processes:
        sys.stdout.write(json.dumps(measure_processes(), indent=1) + "\n")
        return 0
    cases: dict[str, Any] = {}
    for name in arguments.cases.split(","):
        cases[name] = run_case(CASES[name], arguments.steps)
        sys.stdout.write(json.dumps({name: cases[name]}, indent=1) + "\n")
        sys.stdout.flush()
    found = {
        "environment": environment(torch.device("cpu")),
        "accepted": {"memory": ACCEPTED_MEMORY, "step": ACCEPTED_STEP},
        "cases": cases,
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(is_accepted(case) for case in cases.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
