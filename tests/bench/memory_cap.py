"""Trains a Wan of 300 million parameters, all of them, under a memory cap; peak of 14B plans.

    OMP_NUM_THREADS=1 python -m tests.bench.memory_cap --folder FOLDER

Every job is a process of its own (`memory_cap_job`) that the kernel ends at the cap
(`memory_group`): GRPO steps through `RlLearner` on groups sampled with what was just published. All
but the first train in bfloat16 with activation checkpointing and differ by what `learner.offload`
says alone; bfloat16 has a float32 master and float32 gradients in all of them. The one with its
state on disk is compared with one that has all in memory, under a higher cap: what both published
must have the same digests. FOLDER, for state on disk, must be on a disk. Other processes may use
the machine, so seconds are upper bounds; memory is not affected. A process's peak may be above that
of its group: libraries that others loaded count for them.

Plans of real sizes run without a cap; their peak is of `rlvid plan`'s own process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.memory_group import CappedRun, Version, find_version, run_capped

RESULTS = Path(__file__).parent / "results"
GIB = 2**30
BF16 = {"zero_stage": 2, "activation_checkpointing": True}
JOBS: Mapping[str, dict[str, Any]] = {
    "float32, no checkpointing": {"dtype": "float32", "learner": {"zero_stage": 2}},
    "bfloat16": {"learner": BF16},
    "bfloat16, offload cpu": {"learner": {**BF16, "offload": {"optimizer": "cpu"}}},
    "float32, ZeRO 3, offload cpu": {
        "dtype": "float32",
        "learner": {
            **BF16,
            "zero_stage": 3,
            "offload": {"optimizer": "cpu", "parameters": "cpu"},
        },
    },
    "bfloat16, offload disk": {"learner": {**BF16, "offload": {"optimizer": "disk"}}},
}
"""By name what each job differs in; the folder of a disk is filled in."""
IN_MEMORY = "bfloat16"
"""The job that is done once more, under the higher cap, to compare with."""
ON_DISK = "bfloat16, offload disk"
H200 = ("--assume", "gpu=NVIDIA H200", "--assume", "gpu_memory_gib=138")
PLANS = (
    ("wan2.1_14b_lora", *H200),
    ("wan2.1_14b_lora", "--cluster", "8x8xH200"),
    ("wan2.2_a14b", *H200),
)
"""Arguments of `rlvid plan`; both recipes are for 64 GPUs."""
_PLAN = """
import atexit, sys, time
from tests.bench.memory_group import own_peak_bytes
atexit.register(lambda: print(own_peak_bytes(), time.process_time(), file=sys.stderr))
sys.argv[:1] = ["rlvid", "plan"]
from rlvid.launch.cli import main
main()
"""
"""A program: the command, and at its end its peak and its processor's seconds on stderr."""
ERROR_CHARACTERS = 400
"""Of what a job that was refused memory said last."""


def run_job(
    settings: Mapping[str, Any], cap_bytes: int, *, version: Version | None, timeout_s: float
) -> dict[str, Any]:
    """Run one job under a cap and return how it ended and what it measured on the way."""
    with tempfile.TemporaryDirectory() as name:
        lines = Path(name) / "lines.jsonl"
        run = run_capped(
            [sys.executable, "-m", "tests.bench.memory_cap_job", json.dumps(settings), str(lines)],
            cap_bytes,
            environment={**os.environ, "DS_ACCELERATOR": "cpu"},
            timeout_s=timeout_s,
            version=version,
        )
        written = lines.read_text().splitlines() if lines.exists() else []
    return describe(run, [json.loads(line) for line in written], cap_bytes)


def describe(run: CappedRun, lines: Sequence[dict[str, Any]], cap_bytes: int) -> dict[str, Any]:
    """Return a job's figures: `ended` is done, killed at the cap, or failed with its last words.

    Args:
        lines: of the job: one for the opening, then one a step. `process_peak_gib` is up to the
            last one, and so of a killed job less than it came to.
    """
    ended = "done" if run.returncode == 0 else "failed"
    if run.oom_kills:
        ended = "killed at the cap"
    opening, steps = lines[:1], lines[1:]
    return {
        "ended": ended,
        "cap_gib": round(cap_bytes / GIB, 2),
        "enforced_by": run.enforced_by,
        "oom_kills": run.oom_kills,
        "group_peak_gib": None if run.peak_bytes is None else round(run.peak_bytes / GIB, 3),
        "process_peak_gib": round(
            max((line["peak_rss_bytes"] for line in lines), default=0) / GIB, 3
        ),
        "steps_done": len(steps),
        **{key: opening[0][key] for key in ("num_parameters", "dtypes", "opened_s") if opening},
        "steps": steps,
        "seconds": round(run.seconds, 1),
        **({"error": run.errors[-ERROR_CHARACTERS:]} if ended == "failed" else {}),
    }


def measure_plan(arguments: Sequence[str], *, timeout_s: float) -> dict[str, Any]:
    """Run `rlvid plan` and return its peak memory and its seconds.

    Raises:
        subprocess.CalledProcessError: the plan failed.
    """
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _PLAN, *arguments],
        timeout=timeout_s,
        capture_output=True,
        text=True,
        check=True,
    )
    peak, cpu_seconds = done.stderr.split()[-2:]
    return {
        "arguments": list(arguments),
        "peak_rss_mib": round(int(peak) / 2**20, 1),
        "seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(float(cpu_seconds), 2),
    }


def job_settings(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return what the job of that name is handed."""
    changes = JOBS[name]
    learner = dict(changes["learner"])
    if learner.get("offload", {}).get("optimizer") == "disk":
        learner["offload"] = {**learner["offload"], "folder": str(arguments.folder)}
    return {
        "size": arguments.size,
        "clip": arguments.clip,
        "num_steps": arguments.steps,
        "dtype": changes.get("dtype", "bfloat16"),
        "learner": learner,
    }


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the result, JSON values, after every job and plan: the next ones may take long."""
    from torch import device

    from tests.bench.timing import environment

    version = None if arguments.rlimit else find_version()

    def run(name: str, cap_gib: float) -> dict[str, Any]:
        return run_job(
            job_settings(arguments, name),
            int(cap_gib * GIB),
            version=version,
            timeout_s=arguments.timeout_s,
        )

    result: dict[str, Any] = {"size": arguments.size, "clip": arguments.clip, "jobs": {}}
    result["environment"] = environment(device("cpu"))
    jobs = result["jobs"]
    for name in arguments.jobs:
        jobs[name] = run(name, arguments.cap_gib)
        yield result
    if ON_DISK in jobs and arguments.higher_gib:
        in_memory = run(IN_MEMORY, arguments.higher_gib)
        result["in_memory"] = {"job": IN_MEMORY, **in_memory}
        result["same_published_digests"] = same_digests(jobs[ON_DISK], in_memory)
        yield result
    for plan in PLANS:
        measured = measure_plan(plan, timeout_s=arguments.timeout_s)
        result["plans"] = [*result.get("plans", []), measured]
        yield result


def same_digests(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool | None:
    """Return whether two jobs published the same, None where one came to no end."""
    if {one["ended"], other["ended"]} != {"done"}:
        return None
    first, second = ([step["published_digest"] for step in job["steps"]] for job in (one, other))
    return first == second


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--size", choices=["wan-300m", "tiny"], default="wan-300m")
    parser.add_argument(
        "--clip", type=int, nargs=3, default=[9, 64, 64], help="frames height width"
    )
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--cap-gib", type=float, default=6.0)
    parser.add_argument(
        "--higher-gib", type=float, default=7.9, help="for the job in memory; 0 leaves it out"
    )
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="for state on disk")
    parser.add_argument("--rlimit", action="store_true", help="cap by RLIMIT_DATA")
    parser.add_argument("--timeout-s", type=float, default=3600.0, help="of one job")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu_memory_cap.json")
    return parser.parse_args(given)


def main() -> None:
    arguments = parse_arguments()
    for result in measure(arguments):
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
