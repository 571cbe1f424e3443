"""Run a plan in virtual time and say what it took."""

from __future__ import annotations

import gc
import time

from rlvid.launch.simulate.plan import SimulationPlan, SimulationResult
from rlvid.launch.simulate.tally import Tally
from rlvid.launch.simulate.world import World


def simulate(plan: SimulationPlan) -> SimulationResult:
    """Return what a run of the plan takes; equal seeds give equal results.

    Raises:
        ValueError: the plan's queue settings are not legal.
        StuckError: the loop does not go on.
        RolloutLostError: more actors are lost than the plan's budget allows.
    """
    began = time.perf_counter()
    world = World(plan)
    collects = gc.isenabled()
    gc.disable()  # looking for cycles among so many live groups takes a third of the time
    try:
        world.run()
    finally:
        if collects:
            gc.enable()
    return _result(world, began)


def _result(world: World, began: float) -> SimulationResult:
    plan, watched, injector = world.plan, world.watched, world.injector
    snapshots = watched.snapshots
    first = min(plan.max_staleness + 2, len(snapshots) // 3)
    (from_s, before), (until_s, after) = snapshots[first], snapshots[-1]
    seconds = max(until_s - from_s, 1e-12)
    num_steps = len(snapshots) - 1 - first
    actor_s = max(after.actor_s - before.actor_s, 1e-12)
    worked_s = after.learning_s - before.learning_s + after.publishing_s - before.publishing_s
    consumed = sum(
        len(batch.report.trained_group_ids) for batch in watched.done[first + 1 :] if batch.report
    )
    hours = until_s / 3600
    reward_workers, ranks = plan.num_reward_workers, plan.num_ranks
    gpu_hours = after.actor_s / 3600 * plan.gpus_per_actor + hours * (
        ranks * plan.gpus_per_rank + reward_workers * plan.gpus_per_reward_worker
    )
    cpu_hours = after.actor_s / 3600 * plan.cpus_per_actor + hours * (
        ranks * plan.cpus_per_rank + reward_workers * plan.cpus_per_reward_worker
    )
    prices, counts, ledger_counts = plan.costs.prices, watched.counts, world.ledger.counts()
    return SimulationResult(
        num_actors=plan.num_actors,
        max_staleness=plan.max_staleness,
        num_steps=plan.num_steps,
        wall_s=until_s,
        step_s=seconds / max(num_steps, 1),
        ideal_s=max(plan.ideal_stages_s.values()),
        videos_per_s=consumed * plan.group_size / seconds,
        learner_idle_frac=max(0.0, 1.0 - worked_s / seconds),
        rollout_busy_frac=(after.sampling_s - before.sampling_s) / actor_s,
        reward_busy_frac=(after.scoring_s - before.scoring_s) / seconds / reward_workers,
        exposed_reward_s=_wait_s(before, after, "rewards") / max(num_steps, 1),
        exposed_rollout_s=_wait_s(before, after, "rollouts") / max(num_steps, 1),
        staleness=dict(sorted(watched.staleness.items())),
        groups={
            "issued": ledger_counts.issued,
            "consumed": ledger_counts.consumed,
            "dropped": ledger_counts.dropped,
            "in_flight": ledger_counts.in_flight,
        },
        failures=dict(sorted(injector.counts.items())),
        refused={
            "lost": counts.lost,
            "late": counts.late_answers,
            "stale": counts.stale_answers,
            "quarantined": counts.quarantined,
        },
        wasted_sampling_frac=after.wasted_s / max(after.sampling_s, 1e-12),
        steps_repeated=len(watched.done) - plan.num_steps,
        ettr=watched.share.ettr,
        gpu_hours=gpu_hours,
        cpu_hours=cpu_hours,
        money=gpu_hours * prices.gpu_hour + cpu_hours * prices.cpu_hour,
        wall_clock_s=time.perf_counter() - began,
    )


def _wait_s(before: Tally, after: Tally, what: str) -> float:
    return after.waits_s[what] - before.waits_s[what]
