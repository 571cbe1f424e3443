"""A plan from a recipe, and costs from what a run of it measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rlvid.config import Recipe
from rlvid.launch.loop.schedule import chunk_size
from rlvid.launch.simulate.costs import CostModel, load_costs, parse_costs
from rlvid.launch.simulate.plan import SimulationPlan

METRICS_FILE = "metrics.jsonl"


def plan_of(recipe: Recipe, costs: CostModel) -> SimulationPlan:
    """Return the plan of the recipe's RL phase; the seed is the recipe's."""
    from rlvid.algorithms.streaming import streams

    rollout, learner, grpo = recipe.rollout, recipe.learner, recipe.grpo
    num_workers, gpus, cpus = reward_workers(recipe)
    return SimulationPlan(
        num_steps=grpo.num_steps,
        groups_per_step=rollout.groups_per_step,
        group_size=rollout.group_size,
        chunk_groups=chunk_size(
            groups_per_step=rollout.groups_per_step,
            num_ranks=learner.data_parallel,
            chunk_groups=learner.chunk_groups,
            streams=streams(recipe.algorithm, recipe.rewards.aggregation),
        ),
        num_ranks=learner.num_ranks,
        max_staleness=rollout.max_staleness,
        num_actors=rollout.num_actors,
        num_reward_workers=num_workers,
        checkpoint_every=grpo.checkpoint.every,
        costs=costs,
        deadline_s=rollout.deadline_s,
        stall_s=rollout.stall_s,
        heartbeat_s=rollout.heartbeat_s,
        start_deadline_s=recipe.cluster.start_deadline_s,
        crash_budget=rollout.crash_budget,
        crash_window_s=rollout.crash_window_s,
        max_deaths_per_prompt=rollout.max_deaths_per_prompt,
        gpus_per_actor=rollout.gpus_per_actor,
        gpus_per_rank=learner.num_gpus,
        gpus_per_reward_worker=gpus,
        cpus_per_actor=rollout.cpus_per_actor,
        cpus_per_rank=learner.num_cpus,
        cpus_per_reward_worker=cpus,
        seed=recipe.seed,
    )


def reward_workers(recipe: Recipe) -> tuple[int, float, float]:
    """Return how many groups the pool scores at once, and the GPUs and CPUs of each of them."""
    from rlvid.launch.demand import rewards_of
    from rlvid.rewards.dispatch.placement import plan_pool

    _, hosts = plan_pool(rewards_of(recipe))
    if not hosts:
        return 1, 0.0, 0.0
    num = min(host.autoscaler.low for host in hosts)
    gpus = sum(host.autoscaler.low * host.num_gpus for host in hosts) / num
    return num, gpus, sum(host.autoscaler.low * host.num_cpus for host in hosts) / num


def read_costs(path: Path) -> CostModel:
    """Read a file of costs, or measure them in the folder of a run.

    Raises:
        ValueError: there is neither, or it does not say what is needed.
    """
    return measured_costs(path) if path.is_dir() else load_costs(path)


def measured_costs(folder: Path) -> CostModel:
    """Return what the steps of a run took on average, without its first step, which warms up.

    Raises:
        ValueError: the folder has no finished RL steps.
    """
    path = folder / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [json.loads(line)["metrics"] for line in lines]
    steps = [row for row in rows if "time/rollout_actors/seconds" in row]
    steps = steps[1:] or steps
    if not steps:
        raise ValueError(
            f"--costs: {folder} has no {METRICS_FILE} with RL steps; name the folder of a run "
            "with a grpo phase, or a file of costs"
        )
    groups = [row["rollout/groups/consumed"] + row["rollout/groups/uniform"] for row in steps]
    return parse_costs(
        {
            "sample_s": _per_group(steps, groups, "time/rollout_actors/seconds"),
            "reward_s": _per_group(steps, groups, "time/reward_pool/seconds"),
            "train_s": _training_s(steps) / max(sum(groups), 1.0),
            "gather_s": _mean(steps, "weights/gather/seconds", "weights/d2h/seconds"),
            "push_s": _mean(steps, "weights/transport/seconds", "weights/verify/seconds"),
            "swap_s": _mean(steps, "weights/swap_pause/seconds"),
        },
        str(folder),
    )


def _per_group(steps: Sequence[dict[str, float]], groups: Sequence[float], name: str) -> float:
    return sum(row.get(name, 0.0) for row in steps) / max(sum(groups), 1.0)


def _training_s(steps: Sequence[dict[str, float]]) -> float:
    """Return what the learner was busy with but publishing, else its forwards and backwards."""
    publishes = ("weights/gather/seconds", "weights/d2h/seconds")
    busy = [
        row["time/learner_busy/seconds"] - sum(row.get(name, 0.0) for name in publishes)
        for row in steps
        if "time/learner_busy/seconds" in row
    ]
    return max(sum(busy), sum(row.get("learner/forwards/seconds", 0.0) for row in steps))


def _mean(steps: Sequence[dict[str, float]], *names: str) -> float:
    return fmean(sum(row.get(name, 0.0) for name in names) for row in steps)
