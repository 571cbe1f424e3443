"""Measures how throughput grows with the number of rollout actors; prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.rollout_scaling [--actors 1,2,4,8,16,32] [--soak 64x10000]

Real Ray and the real pool with sleeping actors, 1 s a group, `TICKETS` groups outstanding for each
actor as a training loop would have. Linear is one group a second and actor. The driver's CPU time
is that of its whole process, Ray's threads included. A soak runs many short groups and watches
the driver's memory. Last, one actor more is asked for during a run: seconds until its first group
is there, of a sleeping one and of one with the shipped tiny model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch

from rlvid.actors.pool import RolloutPool, SampledGroup
from rlvid.config import Recipe
from rlvid.launch.groups import training_task
from rlvid.models.policy import Policy
from rlvid.records import GroupTask, Prompt
from tests.bench.timing import environment

SAMPLE_S = 1.0
SOAK_SAMPLE_S = 0.5
GROUPS_PER_ACTOR = 20
TICKETS = 3
"""Groups outstanding per actor: one sampled, one that waits there, one in the queue."""
ACCEPTED = 0.95


def recipe(num_actors: int, sample_s: float) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "scaling",
            "rollout": {
                "worker": "sleeping",
                "worker_options": {"sample_s": sample_s},
                "num_actors": num_actors,
                "num_cpus": 0.01,
                "num_denoising_steps": 4,
                "group_size": 2,
            },
        }
    )


def tasks(of: Recipe) -> Iterator[GroupTask]:
    """Yield groups without end."""
    number = 0
    while True:
        prompt = Prompt(prompt_id=f"prompt-{number % 100}", text=f"prompt {number % 100}")
        task = training_task(of, prompt, visit=0, step=number, position=0)
        yield replace(task, lease_id=f"lease-{number}")
        number += 1


def run(num_actors: int, num_groups: int, sample_s: float) -> dict[str, Any]:
    """Sample so many groups and return throughput and costs."""
    made = recipe(num_actors, sample_s)
    pool = RolloutPool(
        Policy(model_path="tiny"),
        made.model,
        made.rollout,
        None,
        num_threads=1,
        start_deadline_s=600.0,
    )
    began = time.perf_counter()
    pool.start()
    try:
        pool.wait_ready()
        start_s = time.perf_counter() - began
        supply = tasks(made)
        sample(pool, supply, 2 * num_actors)  # first calls are no part of the measurement
        pool.step_metrics()
        rss: list[float] = []
        began, cpu = time.perf_counter(), time.process_time()
        sample(pool, supply, num_groups, rss)
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        busy_frac = pool.step_metrics()["rollout/busy/frac"]
    finally:
        pool.shutdown()
    ideal_s = sample_s * num_groups / num_actors
    return {
        "actors": num_actors,
        "groups": num_groups,
        "start_s": round(start_s, 1),
        "wall_s": round(wall_s, 2),
        "of_linear": round(ideal_s / wall_s, 4),
        "busy_frac": round(busy_frac, 4),
        "driver_cpu_ms_per_group": round(1e3 * cpu_s / num_groups, 2),
        "driver_rss_mb": [round(value) for value in rss],
    }


def join(made: Recipe) -> float:
    """Return the seconds from asking for a second actor to the end of its first group."""
    pool = RolloutPool(
        Policy(model_path="tiny"),
        made.model,
        made.rollout,
        None,
        num_threads=1,
        start_deadline_s=600.0,
    )
    pool.start()
    try:
        pool.wait_ready()
        supply = tasks(made)
        pool.scale(2)
        began = time.perf_counter()
        while True:
            while pool.num_outstanding < 2 * TICKETS:
                pool.submit(next(supply))
            for answer in pool.collect(60.0):
                assert isinstance(answer, SampledGroup), f"lost: {answer}"
                if answer.summary.actor_id == "actor-1.0":
                    return time.perf_counter() - began
    finally:
        pool.shutdown()


def sample(
    pool: RolloutPool, supply: Iterator[GroupTask], num_groups: int, rss: list[float] | None = None
) -> None:
    """Keep `TICKETS` groups an actor outstanding until `num_groups` are there."""
    num_submitted = num_done = 0
    while num_done < num_groups:
        while num_submitted < min(num_groups, num_done + TICKETS * pool.num_actors):
            pool.submit(next(supply))
            num_submitted += 1
        answers = pool.collect(60.0)
        assert all(isinstance(answer, SampledGroup) for answer in answers), f"lost: {answers}"
        before, num_done = num_done, num_done + len(answers)
        every = max(num_groups // 10, 1)
        if rss is not None and num_done // every > before // every:
            rss.append(resident_mb())


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status: no VmRSS; this benchmark runs on Linux")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--actors", default="1,2,4,8,16,32")
    parser.add_argument("--soak", default="", help="actors x groups, e.g. 64x10000")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    ray.init(
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        table = [
            run(int(num), GROUPS_PER_ACTOR * int(num), SAMPLE_S)
            for num in given.actors.split(",")
            if num
        ]
        soak = None
        if given.soak:
            num_actors, num_groups = (int(part) for part in given.soak.split("x"))
            soak = run(num_actors, num_groups, SOAK_SAMPLE_S)
            first, *_, last = soak["driver_rss_mb"]
            soak["rss_growth_frac"] = round(last / first - 1.0, 4)
        tiny = Recipe.model_validate({"name": "join", "rollout": {"group_size": 4}})
        joins = {
            "sleeping": round(join(recipe(1, SAMPLE_S)), 2),
            "tiny model, groups of 4": round(join(tiny), 2),
        }
    finally:
        ray.shutdown()
    result = {
        "command": "OMP_NUM_THREADS=1 python -m tests.bench.rollout_scaling",
        "sample_s": SAMPLE_S,
        "groups_per_actor": GROUPS_PER_ACTOR,
        "tickets_per_actor": TICKETS,
        "accepted": f"at least {ACCEPTED:g} of linear at every number of actors",
        "holds": all(row["of_linear"] >= ACCEPTED for row in table),
        "table": table,
        "soak": soak,
        "first_group_of_a_joining_actor_s": joins,
        "environment": environment(torch.device("cpu")),
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
