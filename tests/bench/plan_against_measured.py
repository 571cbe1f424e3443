"""The planner's memory and step time against a real run of the quickstart: Ray, real processes.

    python -m tests.bench.plan_against_measured              # two cases
    python -m tests.bench.plan_against_measured --processes  # what a process takes without a model
    python -m tests.bench.plan_against_measured --messages   # what a group takes of driver and Ray

Memory: the peak of every process of a run without Ray's object store, by role, the worst of each;
the plan has what `launch/host_memory.py` says of the process and `launch/memory.py` of the model.
The constants of the former come from `--processes`, a run with next to nothing to compute. Case
`quickstart` is the shipped recipe; `large` has 33 frames of 96x96, where activations show. A group
is a scorer's batch in both: with smaller ones a call takes clips of one group or of two, as they
come, and the peak is that of the fullest call there was, where the plan counts a full batch.

Step time: that of `rlvid plan --measure` (`launch/estimate/cpu_step.py`), which times the roles'
work right after the run, all cores at once. Use a quiet machine.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rlvid.config import Recipe
from rlvid.config.loader import load_recipe
from rlvid.launch.estimate.cpu_rates import group_seconds, measure_rates
from rlvid.launch.estimate.cpu_step import cpu_step
from rlvid.launch.host_memory import process_mib
from rlvid.launch.planner import plan
from rlvid.launch.role_plan import RolePlan
from rlvid.observability.memory_peak import OwnPeak
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
BESIDE = "beside"
"""The kind of all others."""
BASE = ("phases=[grpo]", "grpo.evaluate_every=0")
CASES = {
    "quickstart": (*BASE,),
    "large": (
        *BASE,
        "model.num_frames=33",
        "model.height=96",
        "model.width=96",
        "rollout.groups_per_step=2",
        "rollout.num_denoising_steps=4",
    ),
}
SLEEPING = (
    *BASE,
    "rollout.worker=sleeping",
    "rollout.worker_options={sample_s: 0.3}",
    "learner.worker=sleeping",
    "rewards={colocate: true, scorers: [{use: sleeping, name: a}, {use: sleeping, name: b}]}",
)
"""Clips are of noise, and decoded as ever."""
LEAST = (
    *BASE,
    "model.num_frames=5",
    "rollout.group_size=2",
    "rollout.num_denoising_steps=3",
)


@dataclass(slots=True)
class Seen:
    """What was read of one process, last or at most."""

    peak: OwnPeak
    kind: str = BESIDE
    cpu_s: float = 0.0


def run_recipe(
    overrides: Sequence[str],
    folder: Path,
    look: Callable[[Iterable[Seen]], None] = lambda processes: None,
) -> list[Seen]:
    """Run the quickstart and return all of its processes."""
    tag = uuid.uuid4().hex
    command = [sys.executable, "-m", "rlvid.launch.cli", "run", "quickstart_cpu", *overrides]
    command += ["--run-folder", str(folder)]
    log = folder.with_suffix(".log")
    seen: dict[int, Seen] = {}
    until = time.monotonic() + DEADLINE_S
    with log.open("w") as output:
        run = subprocess.Popen(
            command, env={**os.environ, TAG: tag}, stdout=output, stderr=subprocess.STDOUT
        )
        while run.poll() is None:
            if time.monotonic() > until:
                run.terminate()
                raise RuntimeError(f"{' '.join(command)}: not at its end in {DEADLINE_S:g} s")
            note_processes(tag.encode(), seen)
            look(seen.values())
            time.sleep(LOOK_S)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    return list(seen.values())


def note_processes(tag: bytes, seen: dict[int, Seen]) -> None:
    """Take down kind, peak and CPU time so far of every process of a run."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if tag not in (folder / "environ").read_bytes():
                continue
            command = (folder / "cmdline").read_bytes()
            times = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
            process = seen.setdefault(int(folder.name), Seen(OwnPeak(folder)))
            process.peak.look()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, or is somebody else's
        process.kind = next(
            (kind for name, kind in KINDS.items() if command.startswith(name)), process.kind
        )
        process.cpu_s = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def peaks_of(processes: Sequence[Seen]) -> dict[str, float]:
    """Return the peak MiB by kind of process, of BESIDE that of all together."""
    found: dict[str, float] = defaultdict(float)
    for process in processes:
        kind, mib = process.kind, process.peak.mib
        found[kind] = found[kind] + mib if kind == BESIDE else max(found[kind], mib)
    return dict(found)


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
    steps = [row["metrics"] for row in steps_of(folder)[1:]]
    names = {
        "actors_s": "time/rollout_actors/seconds",
        "rewards_s": "time/reward_pool/seconds",
        "learner_s": "time/learner_update/seconds",
        "step_s": "time/step/seconds",
    }
    return {key: statistics.median(row[name] for row in steps) for key, name in names.items()}


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Return the line of each step in a run's metrics."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "time/step/seconds" in line["metrics"]]


def run_case(overrides: Sequence[str], num_steps: int) -> dict[str, Any]:
    """Run one case and return what was planned and what was measured."""
    overrides = [*overrides, f"grpo.num_steps={num_steps}"]
    recipe = load_recipe("quickstart_cpu", overrides)
    with tempfile.TemporaryDirectory(prefix="plan-") as name:
        folder = Path(name) / "run"
        load = os.getloadavg()[0]
        peaks = peaks_of(run_recipe(overrides, folder))
        measured = measured_step(folder)
    rates = measure_rates(recipe)
    predicted = asdict(cpu_step(recipe, group_seconds(recipe, rates), rates.num_cores))
    return {
        "overrides": overrides,
        "memory": compare_memory(recipe, peaks),
        "beside_mib": round(peaks.get(BESIDE, 0.0), 1),
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
        peaks = peaks_of(run_recipe(overrides, Path(name) / "run"))
    roles = planned_roles(load_recipe("quickstart_cpu", overrides))
    models = {kind: role.host_total_mib - process_mib(role.role) for kind, role in roles.items()}
    return {kind: round(mib - models.get(kind, 0.0), 1) for kind, mib in peaks.items()}


def measure_messages(num_steps: int = 40) -> float:
    """Return CPU seconds of a group in a run whose roles sleep, without those of its decoding."""
    looks = list[tuple[float, float]]()

    def look(processes: Iterable[Seen]) -> None:
        looks.append((time.time(), sum(process.cpu_s for process in processes)))

    with tempfile.TemporaryDirectory(prefix="plan-") as name:
        folder = Path(name) / "run"
        run_recipe([*SLEEPING, f"grpo.num_steps={num_steps}"], folder, look)
        times = [float(row["time_s"]) for row in steps_of(folder)]
        rows = [row["metrics"] for row in steps_of(folder)[1:]]
    decode_s = sum(float(row["reward_pool/decode/seconds"]) for row in rows)
    first, last = (max(cpu_s for at, cpu_s in looks if at <= end) for end in (times[0], times[-1]))
    groups = load_recipe("quickstart_cpu", SLEEPING).rollout.groups_per_step
    return (last - first - decode_s) / (groups * (num_steps - 1))


def is_accepted(case: Mapping[str, Any]) -> bool:
    memory = all(abs(row["error_frac"]) <= ACCEPTED_MEMORY for row in case["memory"].values())
    return memory and abs(case["step_error_frac"]) <= ACCEPTED_STEP


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--messages", action="store_true")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.processes:
        sys.stdout.write(json.dumps(measure_processes(), indent=1) + "\n")
        return 0
    if arguments.messages:
        sys.stdout.write(f"{measure_messages():.3f} s\n")
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
