"""What becomes of 10,000 malformed inputs of the intake; prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.intake_faults > tests/bench/results/intake_faults.json

Ends with an error when anything raised, was lost, was counted twice, or was dropped for another
reason than it should be: seen = kept + dropped, by name and not only in number.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.bench.timing import environment
from tests.unit.data.intake_fuzz import KINDS, FuzzReport, run_fuzz

NUM_INPUTS = 10_000
CHUNK = 500
"""Inputs on disk at once."""
SEED = 1
"""Another than the test's."""


def intake_faults() -> tuple[FuzzReport, dict[str, Any]]:
    """Run all inputs, and return what became of them with the figures of the result file."""
    report = FuzzReport()
    began = time.perf_counter()
    for start in range(0, NUM_INPUTS, CHUNK):
        with tempfile.TemporaryDirectory() as folder:
            stop = min(start + CHUNK, NUM_INPUTS)
            run_fuzz(Path(folder), SEED, range(start, stop), report)
    seconds = time.perf_counter() - began
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return report, {
        "inputs": report.inputs,
        "kinds": len(KINDS),
        "seen": report.seen,
        "kept": report.kept,
        "dropped": dict(report.dropped.most_common()),
        "by_kind": {kind: dict(report.by_kind[kind].most_common()) for kind in KINDS},
        "wrong": report.wrong,
        "seconds": round(seconds, 1),
        "slowest": {"input": report.slowest, "seconds": round(report.slowest_s, 2)},
        "peak_memory_mib": peak_kib // 1024,
    }


def main() -> None:
    torch.set_num_threads(1)
    report, result = intake_faults()
    print(json.dumps({**result, "environment": environment(torch.device("cpu"))}, indent=1))
    if report.wrong or report.seen != report.kept + report.dropped.total():
        sys.exit(f"intake_faults: {len(report.wrong)} inputs were not taken as they should be")


if __name__ == "__main__":
    main()
