"""How much of the wall time ends up in the final model while roles fail, in virtual time.

    python -m tests.bench.ettr

ETTR is that of `rlvid.observability.recovery`: the wall time of the steps that are in the policy,
without those done again and without restarts, over all wall time since the start. Beside it stands
the stricter `clean_frac`: wall time of the same run without failures over its wall time with them,
which also counts what a step takes longer because actors are missing.

Costs are those of a video run in which a step takes two minutes: sampling a group 60 s, on as many
actors as keep the learner busy, rewards 20 s, training 15 s a group; a replaced actor loads for
30 s, a learner for 60 s, a driver for 60 s; a checkpoint after each step, 2 s; max_staleness 1.

"10 % failure injection" is taken in three ways: a tenth of all groups that actors and reward
workers begin end in a failure (killed, stuck, zombie, slow, raised, in equal parts); a tenth of the
steps are hit by a failure, in equal parts of an actor, a reward worker, a learner rank and the
driver; a tenth of the steps are hit by a loss of learner or driver, the hardest there is.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from rlvid.launch.simulate.costs import parse_costs
from rlvid.launch.simulate.failures import FailureRates
from rlvid.launch.simulate.plan import SimulationPlan
from rlvid.launch.simulate.run import simulate

RESULTS = Path(__file__).parent / "results" / "ettr.json"
SEEDS = range(5)
COSTS = {
    "sample_s": {"mean_s": 60.0, "shape": "lognormal", "cv": 0.1},
    "reward_s": {"mean_s": 20.0, "shape": "lognormal", "cv": 0.3},
    "train_s": 15.0,
    "gather_s": 1.0,
    "push_s": 3.0,
    "start_s": 30.0,
    "learner_start_s": 60.0,
    "driver_start_s": 60.0,
    "checkpoint_s": 2.0,
}
PLAN = SimulationPlan(
    num_steps=200,
    groups_per_step=8,
    max_staleness=1,
    num_actors=8,
    num_reward_workers=4,
    checkpoint_every=1,
    costs=parse_costs(COSTS, "ettr"),
    deadline_s=240.0,
    stall_s=60.0,
    heartbeat_s=10.0,
    reward_deadline_s=60.0,
    crash_budget=10_000,
    max_deaths_per_prompt=10,
)
EVERY_ROLE = {
    **dict.fromkeys(
        ("sample_killed", "sample_stuck", "sample_zombie", "sample_slow", "sample_raises"), 0.02
    ),
    "score_killed": 0.05,
    "score_stuck": 0.05,
}
GROUPS = PLAN.groups_per_step
CASES = {
    "none": FailureRates(),
    "a tenth of the groups": FailureRates(**EVERY_ROLE),
    "a tenth of the steps, every role": FailureRates(
        sample_killed=0.0125 / GROUPS,
        sample_stuck=0.0125 / GROUPS,
        score_killed=0.0125 / GROUPS,
        score_stuck=0.0125 / GROUPS,
        learner_lost=0.025,
        driver_lost=0.025,
    ),
    "a tenth of the steps, learner and driver": FailureRates(learner_lost=0.05, driver_lost=0.05),
}


def measure(rates: FailureRates) -> dict[str, float]:
    """Return means over the seeds."""
    rows = []
    for seed in SEEDS:
        clean = simulate(replace(PLAN, seed=seed))
        result = simulate(replace(PLAN, seed=seed, failures=rates))
        rows.append(
            {
                "ettr": result.ettr,
                "clean_frac": clean.wall_s / result.wall_s,
                "step_s": result.wall_s / PLAN.num_steps,
                "failures": float(sum(result.failures.values())),
                "steps_repeated": float(result.steps_repeated),
                "wasted_sampling_frac": result.wasted_sampling_frac,
            }
        )
    return {name: round(statistics.fmean(row[name] for row in rows), 4) for name in rows[0]}


def main() -> None:
    logging.disable(logging.CRITICAL)
    found = {
        "costs": COSTS,
        "steps": PLAN.num_steps,
        "seeds": len(SEEDS),
        "cases": {name: measure(rates) for name, rates in CASES.items()},
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(json.dumps(found["cases"], indent=1) + "\n")


if __name__ == "__main__":
    main()
