"""Random schedules of the loop in virtual time, and what must hold of each.

The loop's own line, trainer, recovery and ledger, and the real fleet, run over virtual ports that
die, stop, lie and answer late; the driver dies between two ledger moves. What must hold:

- conservation: issued = consumed + dropped + in flight, always, and nothing in flight at the end
- no group is consumed twice, and a group is in the policy once: the last consumption of a step
  that was done again replaces the earlier ones
- staleness: a group that trains was sampled with a version of `max_staleness` back to its own step
- order: a step's groups reach the learner by id
- it ends: whatever fails within the budgets, and whatever one replicated role never recovers from
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rlvid.actors.answers import LostGroup, SampledGroup
from rlvid.config.elasticity import AutoscaleConfig
from rlvid.launch.ledger import Ledger
from rlvid.launch.simulate.clock import VirtualClock
from rlvid.launch.simulate.costs import CostModel, parse_costs
from rlvid.launch.simulate.driver import DriverLostError, VirtualDriver, Watched
from rlvid.launch.simulate.failures import FailureRates
from rlvid.launch.simulate.keeper import VirtualKeeper
from rlvid.launch.simulate.plan import SimulationPlan
from rlvid.launch.simulate.rollouts import VirtualRollouts
from rlvid.launch.simulate.world import World
from rlvid.records import GroupTask, WeightsManifest


class BrokenPromiseError(AssertionError):
    """Something that must hold of every schedule does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A plan, and what goes wrong that the plan does not know."""

    plan: SimulationPlan
    driver_deaths: tuple[int, ...] = ()
    """Ledger moves after which the driver dies, each counted from its start."""
    kept_frac: float = 1.0
    """Share of scored groups that are on disk at a crash."""
    damaged_frac: float = 0.0
    """Share of those that cannot be read."""
    repeated_frac: float = 0.0
    """Share of answers that come twice, the second one later."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a schedule came to, for counting what was witnessed."""

    failures: Counter[str]
    refused: Counter[str]
    steps_repeated: int
    driver_deaths: int


class FragileLedger:
    """A ledger whose driver dies before a given number of moves from now."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.moves_left: int | None = None

    def __getattr__(self, name: str) -> Any:
        if self.moves_left is not None and name in _MOVES:
            if self.moves_left == 0:
                self.moves_left = None
                raise DriverLostError("the driver died before a move of the ledger")
            self.moves_left -= 1
        return getattr(self._ledger, name)


_MOVES = frozenset(
    ("plan", "lease", "sampled", "scoring", "ready", "claim", "consume", "drop", "published")
)


class Repeating:
    """Hands some answers of the rollouts out again later, as a resent message would be."""

    def __init__(
        self, rollouts: VirtualRollouts, clock: VirtualClock, frac: float, source: random.Random
    ) -> None:
        self._rollouts, self._clock = rollouts, clock
        self._frac, self._source = frac, source
        self._again: list[SampledGroup | LostGroup] = []

    def submit(
        self, task: GroupTask, *, min_version: int = -1, max_version: int | None = None
    ) -> None:
        self._rollouts.submit(task, min_version=min_version, max_version=max_version)

    def collect(self, timeout_s: float) -> Sequence[SampledGroup | LostGroup]:
        found = [*self._rollouts.collect(timeout_s), *self._again]
        self._again.clear()
        for answer in found:
            if self._source.random() < self._frac:
                later = self._source.choice([0.0, 0.1, 3.0])
                self._clock.after(later, partial(self._again.append, answer))
        return found

    def begin_publish(self, manifest: WeightsManifest, payload: Any) -> None:
        self._rollouts.begin_publish(manifest, payload)

    @property
    def num_outstanding(self) -> int:
        return self._rollouts.num_outstanding


@dataclass(slots=True)
class Checker:
    """Looks at what the learner consumed."""

    plan: SimulationPlan
    in_policy: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Step to the groups of its last update."""

    def watch(self, driver: VirtualDriver) -> None:
        """Check each chunk as it is fed."""
        reward = driver.steps.reward

        def checked(chunk: Any, groups: Sequence[Any]) -> Any:
            ids = [group.task.group_id for group in groups]
            if ids != sorted(ids) or not set(ids) <= set(chunk.group_ids):
                raise BrokenPromiseError(f"chunk {chunk} got {ids}")
            for group in groups:
                behind = chunk.step - group.summary.policy_version
                if not 0 <= behind <= self.plan.max_staleness:
                    raise BrokenPromiseError(
                        f"{group.task.group_id} is {behind} versions behind, "
                        f"expected 0 to {self.plan.max_staleness}"
                    )
            return reward(chunk, groups)

        driver.trainer._steps = _With(driver.steps, checked)

    def end(self, ledger: Ledger, watched: Watched) -> None:
        """Check the books of a finished run."""
        counts = ledger.counts()
        if not counts.is_balanced or counts.in_flight:
            raise BrokenPromiseError(f"groups are unaccounted for at the end: {counts}")
        plan = self.plan
        if counts.issued != plan.num_steps * plan.groups_per_step + _evaluations(plan):
            raise BrokenPromiseError(f"wrong number of groups: {counts}")
        for batch in watched.done:
            assert batch.report is not None, "the step is finished"
            for later in [step for step in self.in_policy if step >= batch.step]:
                del self.in_policy[later]
            self.in_policy[batch.step] = tuple(batch.report.trained_group_ids)
        if sorted(self.in_policy) != list(range(plan.num_steps)):
            raise BrokenPromiseError(f"steps in the policy: {sorted(self.in_policy)}")
        consumed = [group_id for ids in self.in_policy.values() for group_id in ids]
        if len(set(consumed)) != len(consumed):
            raise BrokenPromiseError("a group was consumed twice")
        states = ledger.states_from(0)
        in_ledger = {g for g, state in states.items() if state == "consumed" and g[0].isdigit()}
        if in_ledger != set(consumed):
            raise BrokenPromiseError(
                f"ledger and policy differ: {sorted(in_ledger ^ set(consumed))[:5]}"
            )


class _With:
    """Steps with another `reward`."""

    def __init__(self, steps: Any, reward: Any) -> None:
        self._steps, self.reward = steps, reward

    def __getattr__(self, name: str) -> Any:
        return getattr(self._steps, name)


def run_schedule(schedule: Schedule) -> Outcome:
    """Run a schedule to its end.

    Raises:
        BrokenPromiseError: something that must hold does not.
        StuckError: it does not end.
    """
    plan = schedule.plan
    world = World(plan)
    source, clock, watched, books = world.source, world.clock, world.watched, world.ledger
    fragile: Any = FragileLedger(books)
    world.ledger = fragile
    world.keeper = VirtualKeeper(
        keeps=lambda: source.random() < schedule.kept_frac,
        is_damaged=lambda: source.random() < schedule.damaged_frac,
    )
    checker = Checker(plan)
    deaths = list(schedule.driver_deaths)

    def on_driver(driver: VirtualDriver) -> None:
        checker.watch(driver)
        fragile.moves_left = deaths.pop() if deaths else None

    def on_death() -> None:
        fragile.moves_left = None
        if not books.counts().is_balanced:
            raise BrokenPromiseError(f"out of balance after a crash: {books.counts()}")

    world.run(
        wrap=lambda rollouts: Repeating(rollouts, clock, schedule.repeated_frac, source),
        on_driver=on_driver,
        on_death=on_death,
    )
    fragile.moves_left = None
    checker.end(books, watched)
    lost = watched.counts
    return Outcome(
        failures=Counter(world.injector.counts),
        refused=Counter(
            lost=lost.lost,
            late=lost.late_answers,
            stale=lost.stale_answers,
            quarantined=lost.quarantined,
        ),
        steps_repeated=len(watched.done) - plan.num_steps,
        driver_deaths=world.num_deaths,
    )


def _evaluations(plan: SimulationPlan) -> int:
    if not plan.evaluate_every:
        return 0
    due = {
        step
        for step in range(plan.num_steps)
        if (step + 1) % plan.evaluate_every == 0 or step + 1 == plan.num_steps
    }
    return (1 + len(due)) * plan.evaluate_groups


def random_schedule(seed: int) -> Schedule:
    """Return a schedule of small size in which much goes wrong, a function of the seed."""
    draw = random.Random(seed)
    groups_per_step, num_ranks = draw.randint(1, 6), draw.choice([1, 1, 2, 3])
    chunk = draw.randint(1, 6)
    chunk = min(-(-chunk // num_ranks) * num_ranks, groups_per_step)
    num_actors = draw.choice([1, 1, 2, 3, 5])

    failures, costs = _random_rates(draw), _random_costs(draw)
    times = sorted(draw.uniform(0, 40) for _ in range(draw.choice([0, 0, 1, 3])))
    evaluate_every = draw.choice([0, 0, 1, 3])
    num_stops = draw.choice([0, 0, 0, 1, 3])
    plan = SimulationPlan(
        num_steps=draw.randint(1, 8),
        groups_per_step=groups_per_step,
        group_size=2,
        chunk_groups=chunk,
        num_ranks=num_ranks,
        max_staleness=draw.choice([0, 0, 1, 1, 2, 3]),
        num_actors=num_actors,
        num_reward_workers=draw.randint(1, 3),
        num_prompts=draw.choice([1, 3, 16]),
        checkpoint_every=draw.choice([0, 1, 2, 3]),
        evaluate_every=evaluate_every,
        evaluate_groups=draw.randint(1, 3) if evaluate_every else 0,
        costs=costs,
        failures=failures,
        scale={at_s: draw.randint(1, 6) for at_s in times},
        stops={draw.uniform(0, 40): draw.choice([0.0, 1.0, 20.0]) for _ in range(num_stops)},
        autoscale=AutoscaleConfig(cooldown_s=5.0, max_actors=6) if draw.random() < 0.2 else None,
        uniform_frac=draw.choice([0.0, 0.0, 0.3]),
        prefetch=draw.random() < 0.7,
        deadline_s=20.0,
        stall_s=8.0,
        heartbeat_s=2.0,
        start_deadline_s=200.0,
        crash_budget=10_000,
        max_deaths_per_prompt=draw.choice([2, 3, 8]) if not evaluate_every else 1000,
        reward_deadline_s=15.0,
        deadly_prompts=_deadly(draw, evaluate_every),
        seed=seed,
    )
    # Not with scaling, which may leave the one place that never works.
    is_fixed = not plan.scale and plan.autoscale is None
    if is_fixed and num_actors > 1 and draw.random() < 0.2:
        plan = replace(plan, dead_actors=frozenset({draw.randrange(num_actors)}))
    return Schedule(
        plan=plan,
        driver_deaths=tuple(draw.randint(0, 150) for _ in range(draw.choice([0, 0, 1, 3]))),
        kept_frac=draw.choice([0.0, 0.5, 1.0]),
        damaged_frac=draw.choice([0.0, 0.0, 0.3]),
        repeated_frac=draw.choice([0.0, 0.0, 0.2]),
    )


def _deadly(draw: random.Random, evaluate_every: int) -> frozenset[int]:
    return frozenset({0}) if not evaluate_every and draw.random() < 0.15 else frozenset()


def _random_rates(draw: random.Random) -> FailureRates:
    """Return rates of which those of sampling leave most attempts alone.

    A publish refused three times in a row by the first actor ends a run, as it should.
    """
    names = [name for name in FailureRates.model_fields if name != "slow_factor"]
    chosen = draw.sample(names, draw.randint(0, 5))
    rates = {name: draw.choice([0.02, 0.1, 0.2]) for name in chosen}
    total = sum(rate for name, rate in rates.items() if name.startswith("sample_"))
    scale = 0.4 / total if total > 0.4 else 1.0
    scales = {name: scale if name.startswith("sample_") else 1.0 for name in rates}
    scales["publish_refused"] = 0.1
    return FailureRates(**{name: rate * scales[name] for name, rate in rates.items()})


def _random_costs(draw: random.Random) -> CostModel:
    longest_s = {
        "sample_s": 5.0, "reward_s": 5.0, "decode_s": 0.5, "train_s": 2.0, "update_s": 0.5,
        "gather_s": 0.3, "push_s": 4.0, "swap_s": 0.1, "start_s": 8.0, "learner_start_s": 8.0,
        "checkpoint_s": 1.0,
    }  # fmt: skip
    costs = {}
    for name, longest in longest_s.items():
        shape = draw.choice(["fixed", "fixed", "lognormal", "heavy_tail"])
        mean_s = draw.choice([0.0, 0.1, 1.0, longest])
        costs[name] = {"mean_s": mean_s, "shape": shape, "cv": draw.choice([0.3, 2.0])}
    return parse_costs(costs, "schedule")


def try_schedule(seed: int) -> Outcome | str:
    """Return the outcome of the seed's schedule, or what is wrong with it."""
    try:
        return run_schedule(random_schedule(seed))
    except Exception as error:  # whatever it is, the seed is what is needed
        return f"{type(error).__name__}: {error}"
