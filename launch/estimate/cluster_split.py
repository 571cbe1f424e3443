"""The split of a cluster's GPUs between the roles of the RL phase that takes the least time a step.

Roles of one stage work beside one another, stages one after the other (`estimate.records.Work`).
More processes never take longer, so for each number of learner ranks the others take the fewest
that keep the pace, and the pace is the quickest for which the GPUs suffice: that is the best split,
not one that a search happened upon. A role with a part of a GPU stays as it is, or moves to whole
ones.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from rlvid.launch.estimate.sharing import EPSILON, Held, shared_devices, together, usable_devices

Split = Mapping[str, Held]
"""Name of a role to what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The GPUs there are."""

    num_nodes: int
    gpus_per_node: int

    @property
    def num_gpus(self) -> int:
        return self.num_nodes * self.gpus_per_node

    def holds(self, held: Sequence[Held]) -> bool:
        """Return whether all processes have a place, each on one node, the largest placed first."""
        singles = shared_devices(held)
        free = [self.gpus_per_node] * self.num_nodes
        for role in sorted(held, key=lambda role: -role.num_gpus):
            if role.is_shared:
                continue
            each = math.ceil(role.num_gpus - EPSILON)
            if each <= 1:
                singles += role.num_processes * each
                continue
            for node, has in enumerate(free):
                taken = min(role.num_processes, has // each)
                free[node] -= taken * each
                role = replace(role, num_processes=role.num_processes - taken)
            if role.num_processes:
                return False
        return singles <= sum(free)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRole:
    """One role of the RL phase whose work is known."""

    name: str
    held: Held
    """In the recipe."""
    busy_s: float
    """GPU-seconds of a step."""
    stage: int
    counts: tuple[int, ...]
    """Numbers of processes with whole GPUs that may be, ascending: each one's memory fits."""
    fits: bool
    """Whether a process as it is in the recipe does."""
    pieces: int | None = None
    """A step's work is dealt out in so many, none of them cut; None where none has to wait for the
    last one."""
    together: int = 1
    """Processes that work on a piece."""

    def seconds(self, held: Held, num_shared: int) -> float:
        """Return seconds of a step, were it alone on its GPUs."""
        even = self.busy_s / usable_devices(held, num_shared)
        if self.pieces is None:
            return even
        teams = held.num_processes // self.together
        return even * math.ceil(self.pieces / teams) * teams / self.pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is to be split."""

    room: Room
    roles: tuple[SplitRole, ...]
    kept: tuple[Held, ...] = ()
    """Of roles that stay as they are, in each phase."""
    learner: str = "learner"
    """Name of the role that `instead` takes the place of."""
    instead: tuple[Held, ...] = ()
    """Of what learns in another phase, beside the others."""

    def holds(self, split: Split) -> bool:
        """Return whether there are GPUs for a split, in the RL phase and the other one."""
        others = [held for name, held in split.items() if name != self.learner]
        learning = [held for name, held in split.items() if name == self.learner]
        return self.room.holds([*others, *learning, *self.kept]) and (
            not self.instead or self.room.holds([*others, *self.instead, *self.kept])
        )

    def seconds(self, split: Split) -> dict[str, float]:
        """Return seconds of a step of each role, were it alone on its GPUs."""
        shared = shared_devices([*split.values(), *self.kept])
        return {role.name: role.seconds(split[role.name], shared) for role in self.roles}

    def step_s(self, split: Split) -> float:
        """Return seconds of a step."""
        shared, alone = shared_devices([*split.values(), *self.kept]), self.seconds(split)
        total = 0.0
        for stage in sorted({role.stage for role in self.roles}):
            work = {role.name: role.busy_s for role in self.roles if role.stage == stage}
            total += together(work, {name: alone[name] for name in work}, split, shared)
        return total

    @property
    def own(self) -> dict[str, Held]:
        """The recipe's split."""
        return {role.name: role.held for role in self.roles}

    @property
    def own_fits(self) -> bool:
        return all(role.fits for role in self.roles) and self.holds(self.own)


def best_split(problem: Problem) -> dict[str, Held] | None:
    """Return the split with the least seconds a step, of several that with the fewest GPUs.

    None where nothing fits.
    """
    found = [split for split in _candidates(problem) if problem.holds(split)]
    if problem.own_fits:
        found.append(problem.own)
    if not found:
        return None
    best = min(found, key=lambda split: (problem.step_s(split), _gpus(split)))
    return {role.name: best[role.name] for role in problem.roles}


def _gpus(split: Split) -> float:
    return sum(held.num_processes * held.num_gpus for held in split.values())


def _candidates(problem: Problem) -> Iterator[dict[str, Held]]:
    """Yield the best split for each choice of who shares, and each number of ranks."""
    shares = [role for role in problem.roles if role.held.is_shared]
    for stays in product((True, False), repeat=len(shares)):
        staying = {role.name: role for role, here in zip(shares, stays, strict=True) if here}
        if not all(role.fits for role in staying.values()):
            continue
        fixed = {name: role.held for name, role in staying.items()}
        options = {role.name: _options(role) for role in problem.roles if role.name not in staying}
        ranks = options.pop(problem.learner, [(0.0, None)])
        for own_s, held in ranks:
            chosen = fixed if held is None else {**fixed, problem.learner: held}
            yield from _paced(problem, chosen, options, at_least_s=own_s)


Option = tuple[float, Held | None]
"""Seconds a step, and what is held for them."""


def _options(role: SplitRole) -> list[Option]:
    """Return numbers of processes from few to many, each quicker than all before."""
    options: list[Option] = []
    for count in role.counts:
        held = Held(num_processes=count, num_gpus=max(1.0, role.held.num_gpus))
        seconds = role.seconds(held, 0)
        if not options or seconds < options[-1][0]:
            options.append((seconds, held))
    return options


def _paced(
    problem: Problem, chosen: Split, options: Mapping[str, list[Option]], *, at_least_s: float
) -> Iterator[dict[str, Held]]:
    """Yield the quickest split of the others beside what is chosen, with as few GPUs as it takes.

    A pace is a time that each of them may take; the quicker it is the more they need.
    """
    if not all(options.values()):
        return
    stage = {role.name: role.stage for role in problem.roles}
    beside = any(stage[name] == stage.get(problem.learner) for name in options)
    paces = sorted({seconds for of_role in options.values() for seconds, _ in of_role})
    if beside and problem.learner in chosen:
        paces = sorted({at_least_s, *(pace for pace in paces if pace > at_least_s)})
    slowest = max((of_role[-1][0] for of_role in options.values()), default=0.0)
    paces = [pace for pace in paces if pace >= slowest] or [slowest]

    def split_at(pace: float) -> dict[str, Held]:
        return {**chosen, **{name: _slowest(of_role, pace) for name, of_role in options.items()}}

    place = bisect_left(paces, True, key=lambda pace: problem.holds(split_at(pace)))
    if place < len(paces):
        yield split_at(paces[place])


def _slowest(options: list[Option], pace: float) -> Held:
    """Return the fewest processes that keep a pace; options get quicker."""
    place = bisect_left(options, True, key=lambda option: option[0] <= pace)
    held = options[place][1]
    assert held is not None
    return held
