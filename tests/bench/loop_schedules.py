"""Ten thousand random schedules of the loop in virtual time, and what they witnessed.

    python -m tests.bench.loop_schedules [--schedules 10000] [--first 0] [--processes 2]

A schedule draws costs, failures, queue settings, scalings, deaths of the driver between two ledger
moves and of the learner, answers that come twice; `launch/simulate/schedules.py` says what must
hold of each. A seed that fails is in the results and plays again by `try_schedule(seed)`. The exit
status is 1 where one failed, or where a failure was witnessed less than twice.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path

from rlvid.launch.simulate.failures import FailureRates
from rlvid.launch.simulate.schedules import Outcome, try_schedule

RESULTS = Path(__file__).parent / "results" / "loop_schedules.json"
MAX_SHOWN = 20


def tried(seed: int) -> tuple[int, Outcome | str]:
    logging.disable(logging.CRITICAL)
    return seed, try_schedule(seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    began = time.perf_counter()
    seeds = range(arguments.first, arguments.first + arguments.schedules)
    witnessed: Counter[str] = Counter()
    broken: dict[int, str] = {}
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for seed, outcome in pool.imap_unordered(tried, seeds, chunksize=50):
            if isinstance(outcome, str):
                broken[seed] = outcome
                continue
            witnessed.update(outcome.failures + outcome.refused)
            witnessed.update(steps_repeated=outcome.steps_repeated)
            witnessed.update(driver_deaths=outcome.driver_deaths)
    expected = [name for name in FailureRates.model_fields if name != "slow_factor"]
    missing = [name for name in expected if witnessed[name] < 2]
    found = {
        "schedules": arguments.schedules,
        "first_seed": arguments.first,
        "broken": len(broken),
        "broken_seeds": {str(seed): broken[seed] for seed in sorted(broken)[:MAX_SHOWN]},
        "witnessed": dict(sorted(witnessed.items())),
        "not_witnessed": missing,
        "seconds": round(time.perf_counter() - began, 1),
        "processes": arguments.processes,
        "cores": os.cpu_count(),
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 1 if broken or missing else 0


if __name__ == "__main__":
    sys.exit(main())
