"""Run a plan in virtual time and say what it took."""

from __future__ import annotations

import random
import time
from pathlib import Path

from rlvid.launch.ledger import Ledger, open_ledger
from rlvid.launch.simulate.clock import VirtualClock
from rlvid.launch.simulate.driver import DriverLostError, VirtualDriver, Watched
from rlvid.launch.simulate.failures import Injector
from rlvid.launch.simulate.keeper import VirtualKeeper
from rlvid.launch.simulate.plan import SimulationPlan, SimulationResult
from rlvid.launch.simulate.tally import Tally


def simulate(plan: SimulationPlan) -> SimulationResult:
    """Return what a run of the plan takes; equal seeds give equal results.

    Raises:
        ValueError: the plan's queue settings are not legal.
        StuckError: the loop does not go on.
        RolloutLostError: more actors are lost than the plan's budget allows.
    """
    began = time.perf_counter()
    ledger = open_ledger(Path(":memory:"))
    source = random.Random(plan.seed)
    tally, watched = Tally(), Watched()
    injector = injector_of(plan, random.Random(source.random()))
    clock = VirtualClock(patience_s=patience_s(plan))
    keeper = VirtualKeeper(keeps=lambda: plan.keeps_groups)
    for at_s, num_actors in plan.scale.items():
        clock.at(at_s, lambda wanted=num_actors: driver.rollouts.scale(wanted))
    checkpoint = None
    while True:
        driver = VirtualDriver(
            plan,
            ledger,
            clock,
            injector=injector,
            tally=tally,
            source=source,
            keeper=keeper,
            watched=watched,
            checkpoint=checkpoint,
        )
        try:
            driver.run()
            break
        except DriverLostError:
            checkpoint = driver.checkpoint
            clock.on_pass = lambda seconds: None
            driver.close()
            clock.skip(plan.costs.driver_start_s.draw(source))
    driver.close()
    return _result(plan, ledger, watched, injector, began)


def injector_of(plan: SimulationPlan, source: random.Random) -> Injector:
    return Injector(
        plan.failures,
        source,
        deadly_prompts=frozenset(f"prompt-{number}" for number in plan.deadly_prompts),
        dead_actors=plan.dead_actors,
    )


def patience_s(plan: SimulationPlan) -> float:
    """Return how long a run may get nothing done before it is stuck: every wait has a deadline."""
    costs = plan.costs
    longest = [
        plan.deadline_s,
        plan.start_deadline_s,
        plan.reward_deadline_s,
        costs.learner_start_s.mean_s,
        costs.driver_start_s.mean_s,
        plan.groups_per_step * costs.train_s.mean_s + costs.update_s.mean_s,
    ]
    return 100.0 * sum(longest)


def _result(
    plan: SimulationPlan, ledger: Ledger, watched: Watched, injector: Injector, began: float
) -> SimulationResult:
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
    prices, counts, ledger_counts = plan.costs.prices, watched.counts, ledger.counts()
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
