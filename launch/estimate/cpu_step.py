"""How long a step of the RL phase takes on a machine without GPUs, whose cores the roles share.

A group is sampled, decoded, scored by each scorer and learned from, each by a process of its role
as soon as one is free. What a process takes for it is measured (`cpu_rates.py`). The learner takes
the groups of a chunk once all of them are scored, and after the last its step, which it publishes.
What driver and Ray do for a group is `MESSAGES_S`, between sampling and decoding. Left out:
starting, and what processes lose that take turns on a core.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlvid.config import Recipe
from rlvid.launch.estimate.shared_cores import Task, finish_s
from rlvid.launch.loop.schedule import chunk_size, chunks_of

ACTORS, LEARNER, MESSAGES = "actors", "learner", "messages"
MESSAGES_S = 0.06
"""CPU seconds for each group of the driver, the keeper of groups, Ray, and of its calls in the
processes of all roles: of a run whose roles only sleep, on two x86-64 cores, by
`python -m tests.bench.plan_against_measured --messages`. A group of real clips takes many times as
long, so another machine's figure matters little."""
STEPS = 4
"""That are laid end to end, twice as many once more: a step is what each of them adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSeconds:
    """Of one group, by one process that has a core to itself."""

    sample: float
    decode: float
    score: Mapping[str, float]
    """By label; of scorers that ask nobody."""
    learn: float
    """Forwards and backwards, over all ranks."""
    update: float
    """Of a step, by each rank: the optimiser's, and publishing it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuStep:
    """Seconds of one step; of a role what its processes are busy together, were cores enough."""

    actors_s: float
    rewards_s: float
    learner_s: float
    step_s: float


def cpu_step(recipe: Recipe, group: GroupSeconds, num_cores: float) -> CpuStep:
    """Return how long a step takes, on average over several.

    Args:
        num_cores: that all processes of the run share.
    """
    few, many = (_last_s(recipe, group, steps, num_cores) for steps in (STEPS, 2 * STEPS))
    number = recipe.rollout.groups_per_step
    return CpuStep(
        actors_s=number * group.sample,
        rewards_s=number * (group.decode + sum(group.score.values())),
        learner_s=number * group.learn + recipe.learner.num_ranks * group.update,
        step_s=(many - few) / STEPS,
    )


def processes_of(recipe: Recipe) -> dict[str, int]:
    """Return the processes of each role: of the pool's, by the first service of each."""
    from rlvid.rewards.dispatch.placement import plan_pool

    _, hosts = plan_pool(recipe.rewards)
    found = Counter({ACTORS: recipe.rollout.num_actors, LEARNER: recipe.learner.num_ranks})
    for host in hosts:
        found[_role_of(host.services[0])] += host.autoscaler.low
    return dict(found)


def _last_s(recipe: Recipe, group: GroupSeconds, num_steps: int, num_cores: float) -> float:
    tasks = list(_tasks(recipe, group, num_steps))
    processes = {**processes_of(recipe), MESSAGES: recipe.rollout.groups_per_step}
    return max(finish_s(tasks, processes, num_cores / recipe.cluster.threads_per_role))


def _role_of(service: str) -> str:
    return f"rewards: {service}"


def _tasks(recipe: Recipe, group: GroupSeconds, num_steps: int) -> Iterator[Task]:
    """Yield what is to be done for some steps, in the order in which roles take it."""
    from rlvid.algorithms.streaming import streams
    from rlvid.rewards.dispatch.placement import plan_pool
    from rlvid.rewards.dispatch.processes import DECODER

    rollout, learner = recipe.rollout, recipe.learner
    _, hosts = plan_pool(recipe.rewards)
    hosted = {service: _role_of(host.services[0]) for host in hosts for service in host.services}
    chunk_groups = chunk_size(
        groups_per_step=rollout.groups_per_step,
        num_ranks=learner.data_parallel,
        chunk_groups=learner.chunk_groups,
        streams=streams(recipe.algorithm, recipe.rewards.aggregation),
    )
    place, learned = 0, list[tuple[int, ...]]()
    for step in range(num_steps):
        since = step - 1 - rollout.max_staleness
        issued = learned[since] if since >= 0 else ()
        scored = list[tuple[int, ...]]()
        for _ in range(rollout.groups_per_step):
            yield Task(role=ACTORS, seconds=group.sample, after=issued)
            yield Task(role=MESSAGES, seconds=MESSAGES_S, after=(place,))
            yield Task(role=hosted[DECODER], seconds=group.decode, after=(place + 1,))
            place += 3
            for label, seconds in group.score.items():
                yield Task(role=hosted[label], seconds=seconds, after=(place - 1,))
            last = place + len(group.score)
            scored.append((place - 1, *range(place, last)))
            place = last
        before = learned[-1] if learned else ()
        for chunk in chunks_of(
            step, groups_per_step=rollout.groups_per_step, chunk_groups=chunk_groups
        ):
            ready = scored[chunk.first : chunk.first + chunk.num_groups]
            needed = (*before, *(one for each in ready for one in each))
            share = chunk.num_groups * group.learn / learner.num_ranks
            for _ in range(learner.num_ranks):
                yield Task(role=LEARNER, seconds=share, after=needed)
            before = tuple(range(place, place + learner.num_ranks))
            place += learner.num_ranks
        for _ in range(learner.num_ranks):
            yield Task(role=LEARNER, seconds=group.update, after=before)
        learned.append(tuple(range(place, place + learner.num_ranks)))
        place += learner.num_ranks
