"""Many plans side by side: numbers of actors and schedules, and which of them to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rlvid.launch.simulate.plan import SimulationPlan, SimulationResult
from rlvid.launch.simulate.run import simulate

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEDULES = {0: "lock-step", 1: "one ahead"}
COLUMNS = (
    "schedule",
    "actors",
    "step s",
    "x ideal",
    "videos/s",
    "learner idle",
    "actors busy",
    "reward wait s",
    "stale",
)
"""x ideal: over the time of the busiest role; stale: mean versions behind."""
ENOUGH = 0.05
"""Share of its time that a learner which binds may still wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Results by schedule, then by number of actors."""

    plan: SimulationPlan
    results: tuple[SimulationResult, ...]

    def to_json(self) -> dict[str, Any]:
        best = recommended(self)
        return {
            "results": [result.to_json() for result in self.results],
            "recommendation": recommendation(self),
            "recommended": None
            if best is None
            else {"actors": best.num_actors, "max_staleness": best.max_staleness},
        }


def sweep(plan: SimulationPlan, actors: Sequence[int], staleness: Sequence[int]) -> Sweep:
    """Simulate the plan with each number of actors at each staleness."""
    results = [
        run_capped(replace(plan, num_actors=num, max_staleness=bound))
        for bound in sorted(set(staleness))
        for num in sorted(set(actors))
    ]
    return Sweep(plan=plan, results=tuple(results))


def run_capped(plan: SimulationPlan) -> SimulationResult:
    """Simulate without the actors that can never get a group.

    There are at most (max_staleness + 1) * groups_per_step groups between issue and consumption;
    where nothing fails, actors beyond that change nothing but the bill.
    """
    most = (plan.max_staleness + 1) * plan.groups_per_step
    if plan.num_actors <= most or not plan.failures.is_none:
        return simulate(plan)
    result = simulate(replace(plan, num_actors=most))
    hours = result.wall_s / 3600 * (plan.num_actors - most)
    gpu_hours = result.gpu_hours + hours * plan.gpus_per_actor
    cpu_hours = result.cpu_hours + hours * plan.cpus_per_actor
    prices = plan.costs.prices
    return replace(
        result,
        num_actors=plan.num_actors,
        rollout_busy_frac=result.rollout_busy_frac * most / plan.num_actors,
        gpu_hours=gpu_hours,
        cpu_hours=cpu_hours,
        money=gpu_hours * prices.gpu_hour + cpu_hours * prices.cpu_hour,
    )


def recommended(found: Sweep) -> SimulationResult | None:
    """Return the freshest schedule with the fewest actors at which the learner binds, if any."""
    binding = [result for result in found.results if result.learner_idle_frac <= ENOUGH]
    return min(binding, key=lambda one: (one.max_staleness, one.num_actors), default=None)


def recommendation(found: Sweep) -> str:
    """Return in one line what to take, or what binds instead of the learner."""
    plan, best = found.plan, recommended(found)
    if best is None:
        fastest = min(found.results, key=lambda one: (one.step_s, one.num_actors))
        settings = _with(plan, fastest)
        stages = settings.ideal_stages_s
        waits = "rewards" if fastest.exposed_reward_s > fastest.exposed_rollout_s else "rollouts"
        binds = max(stages, key=lambda name: stages[name])
        return (
            f"The learner never binds: at best {fastest.step_s:.3g} s a step with "
            f"{fastest.num_actors} actors and max_staleness {fastest.max_staleness}, learner idle "
            f"{fastest.learner_idle_frac:.0%}, waiting for {waits}; busiest role: {binds}, "
            f"{stages[binds]:.3g} s a step"
        )
    stages = _with(plan, best).ideal_stages_s
    rollouts, learner = stages["rollouts"], stages["learner"]
    bound = (rollouts + learner) / max(rollouts, learner, 1e-12)
    lock_step = [
        one.step_s
        for one in found.results
        if one.max_staleness == 0 and one.num_actors == best.num_actors
    ]
    gain = (
        f", {lock_step[0] / best.step_s:.2f}x lock-step" if lock_step and best.max_staleness else ""
    )
    return (
        f"{best.num_actors} actors with max_staleness {best.max_staleness} keep the learner busy: "
        f"{best.step_s:.3g} s a step, learner idle {best.learner_idle_frac:.1%}{gain}; overlap can "
        f"gain at most (R + L) / max(R, L) = {bound:.2f} there"
    )


def render(found: Sweep) -> RenderableType:
    """Return table and recommendation for a terminal."""
    from rich.console import Group
    from rich.table import Table

    stages = found.plan.ideal_stages_s
    table = Table(
        title=f"{found.plan.groups_per_step} groups a step; learner {stages['learner']:.3g} s, "
        f"rewards {stages['rewards']:.3g} s with {found.plan.num_reward_workers} at a time",
        title_justify="left",
    )
    for heading in COLUMNS:
        is_name = heading == "schedule"
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=is_name)
    fails, costs = not found.plan.failures.is_none, any(one.money for one in found.results)
    if fails:
        table.add_column("in policy", justify="right")
    table.add_column("cost" if costs else "hours", justify="right", no_wrap=True)
    last = None
    for result in found.results:
        name = SCHEDULES.get(result.max_staleness, f"{result.max_staleness} behind")
        if last not in (None, result.max_staleness):
            table.add_section()
        last = result.max_staleness
        table.add_row(name, *_cells(result, fails=fails, costs=costs))
    return Group(table, recommendation(found))


def _cells(result: SimulationResult, *, fails: bool, costs: bool) -> list[str]:
    groups = sum(result.staleness.values())
    behind = sum(versions * count for versions, count in result.staleness.items()) / max(groups, 1)
    hours = f"{result.gpu_hours:.3g} GPU" if result.gpu_hours else f"{result.cpu_hours:.3g} CPU"
    return [
        str(result.num_actors),
        f"{result.step_s:.3g}",
        f"{result.step_s / max(result.ideal_s, 1e-12):.2f}",
        f"{result.videos_per_s:.3g}",
        f"{result.learner_idle_frac:.0%}",
        f"{result.rollout_busy_frac:.0%}",
        f"{result.exposed_reward_s:.3g}",
        f"{behind:.2f}",
        *[f"{result.ettr:.0%}"] * fails,
        f"{result.money:.2f}" if costs else hours,
    ]


def _with(plan: SimulationPlan, result: SimulationResult) -> SimulationPlan:
    return replace(plan, num_actors=result.num_actors, max_staleness=result.max_staleness)
