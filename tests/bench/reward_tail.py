"""Measures how long a step waits for its last score; prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.reward_tail

Real Ray, the shipped model's decoder, one real critic and two scorers that sleep 200 ms and 1 s a
batch. Groups of 8 come one by one as rollout actors would deliver them, and the next step's come
only when every score of a step is there (`max_staleness: 0`). The exposed time of a step is from
its last group's arrival to its last score. It is compared with the own time of the slowest scorer:
what it would take for the step's clips with everything else free, its batches times 1 s.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import ray
import torch

from rlvid.config import ClusterConfig, ModelConfig, RewardsConfig
from rlvid.models import load_model
from rlvid.rewards.pool import RewardPool
from rlvid.rewards.scoring import GroupScores
from tests.bench.timing import environment
from tests.unit.rewards.scorers import group

GROUP_SIZE = 8
GROUPS_PER_STEP = 8
NUM_STEPS = 3
SLOWEST_S = 1.0
ALLOWED = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One setting of the slowest scorer and of the rollouts."""

    name: str
    group_every_s: float
    batch_size: int
    num_replicas: int


CASES = (
    Case(name="it keeps pace", group_every_s=1.25, batch_size=8, num_replicas=1),
    Case(name="it lags, one group a batch", group_every_s=0.35, batch_size=8, num_replicas=1),
    Case(name="it lags, batches over groups", group_every_s=0.35, batch_size=64, num_replicas=1),
    Case(name="it lags, two replicas", group_every_s=0.35, batch_size=8, num_replicas=2),
)


def rewards(case: Case) -> RewardsConfig:
    slow: dict[str, Any] = {"use": "tests.system.reward_faults:Slow", "num_cpus": 0.1}
    scorers = [
        {"use": "realism"},
        {**slow, "name": "slow_200ms", "config": {"seconds": 0.2}},
        {
            **slow,
            "name": "slow_1s",
            "config": {"seconds": SLOWEST_S},
            "batch_size": case.batch_size,
            "num_replicas": case.num_replicas,
        },
    ]
    return RewardsConfig.model_validate({"scorers": scorers, "cache_entries": 0})


def run(case: Case, model: ModelConfig, latent_shape: tuple[int, int, int, int]) -> dict[str, Any]:
    pool = RewardPool(rewards(case), model, ClusterConfig())
    pool.start()
    try:
        pool.health_check(500.0)
        references = [
            ray.put(group(f"000000-{n:02d}", GROUP_SIZE, latent_shape))
            for n in range(GROUPS_PER_STEP)
        ]
        pool.score(references[:1])  # imports and first calls are no part of a step
        pool.step_metrics()
        steps = [step(pool, references, case.group_every_s) for _ in range(NUM_STEPS)]
    finally:
        pool.shutdown()
    exposed = [one["exposed_s"] for one in steps]
    own = [one["own_s"] for one in steps]
    return {
        "case": case.name,
        "group_every_s": case.group_every_s,
        "batch_size": case.batch_size,
        "num_replicas": case.num_replicas,
        "exposed_s_mean": round(statistics.fmean(exposed), 3),
        "exposed_s_max": round(max(exposed), 3),
        "one_batch_s": SLOWEST_S,
        "own_s_mean": round(statistics.fmean(own), 3),
        "largest_share_of_own": round(max(e / o for e, o in zip(exposed, own, strict=True)), 3),
        "holds": all(e <= ALLOWED * o for e, o in zip(exposed, own, strict=True)),
        "all_scorers_in_turn_s": round(GROUPS_PER_STEP * (SLOWEST_S + 0.2), 3),
        "steps": steps,
    }


def step(pool: RewardPool, references: list[ray.ObjectRef], every_s: float) -> dict[str, float]:
    """Deliver a step's groups and wait for their scores."""
    tickets: list[int] = []
    answers: dict[int, GroupScores] = {}
    due = time.monotonic()
    for reference in references:
        while time.monotonic() < due:
            answers.update(pool.collect(max(0.0, due - time.monotonic())))
            time.sleep(max(0.0, min(0.01, due - time.monotonic())))
        tickets.append(pool.submit(reference))
        due += every_s
    last = time.monotonic()
    while len(answers) < len(tickets):
        answers.update(pool.collect(60.0))
    exposed_s = time.monotonic() - last
    assert all(s.value is not None for a in answers.values() for s in a.scores), (
        "a score is missing"
    )
    metrics = pool.step_metrics()
    return {
        "exposed_s": round(exposed_s, 3),
        "pool_says_s": round(metrics["reward_pool/exposed_tail/seconds"], 3),
        "own_s": metrics["rewards/slow_1s/calls"] * SLOWEST_S,
        "batch_fill": round(metrics["rewards/slow_1s/batch_fill_frac"], 3),
        "queue_max": metrics["rewards/slow_1s/queue_max"],
        "realism_p95_s": round(metrics["rewards/realism/latency_p95_s"], 3),
    }


def main() -> None:
    model = ModelConfig()
    shape = load_model(model, device="cpu").latent_shape(
        model.num_frames, model.height, model.width
    )
    ray.init(num_cpus=8, include_dashboard=False, object_store_memory=200 * 2**20)
    try:
        table = [run(case, model, shape) for case in CASES]
    finally:
        ray.shutdown()
    result = {
        "command": "OMP_NUM_THREADS=1 python -m tests.bench.reward_tail",
        "groups_per_step": GROUPS_PER_STEP,
        "group_size": GROUP_SIZE,
        "steps_per_case": NUM_STEPS,
        "accepted": f"exposed time of every step at most {ALLOWED:g} x own time of the slowest",
        "table": table,
        "environment": environment(torch.device("cpu")),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
