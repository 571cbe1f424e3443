"""When a step's groups may be given out, and how the learner is fed with them. Pure functions.

A group is trained in the step it was issued for. The groups of step t are issued once version
t - max_staleness is published, so at most (max_staleness + 1) * groups_per_step groups lie between
issue and consumption, and no group is older than `max_staleness` when it is consumed. Admission
paces the rollouts; nothing is dropped for being slow, which would favour fast prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Neighbouring groups of one step that the learner takes in one call."""

    step: int
    first: int
    """Position of its first group in the step."""
    num_groups: int
    batch_groups: int
    """Groups of the whole step."""
    is_last: bool

    @property
    def group_ids(self) -> tuple[str, ...]:
        return tuple(self.ids_from(0))

    def ids_from(self, offset: int) -> Iterator[str]:
        """Yield the ids of its groups, but for the first `offset`."""
        for position in range(self.first + offset, self.first + self.num_groups):
            yield training_group_id(self.step, position)


MAX_GROUPS, MAX_STEPS = 10_000, 1_000_000
"""Of a step, and of a run: with more, names would not sort as they are consumed."""


def training_group_id(step: int, position: int) -> str:
    """Return the name of a training group; names sort as they are consumed."""
    return f"{step:06d}-{position:04d}"


def oldest_version(step: int, max_staleness: int) -> int:
    """Return the oldest version whose groups `step` may consume."""
    return max(step - max_staleness, 0)


def steps_to_open(next_step: int, version: int, *, max_staleness: int, num_steps: int) -> range:
    """Return the steps whose groups may be issued now.

    Args:
        next_step: the first that was not opened yet.
        version: the newest published; the number of optimiser steps it stands for.
    """
    return range(next_step, min(version + max_staleness + 1, num_steps))


def chunks_of(step: int, *, groups_per_step: int, chunk_groups: int) -> tuple[Chunk, ...]:
    """Cut a step into chunks of `chunk_groups`; the last one may be smaller."""
    starts = range(0, groups_per_step, chunk_groups)
    return tuple(
        Chunk(
            step=step,
            first=first,
            num_groups=min(chunk_groups, groups_per_step - first),
            batch_groups=groups_per_step,
            is_last=first + chunk_groups >= groups_per_step,
        )
        for first in starts
    )


def chunk_size(*, groups_per_step: int, num_ranks: int, chunk_groups: int, streams: bool) -> int:
    """Return the groups of a chunk: whole turns of the ranks, or the whole step.

    Args:
        num_ranks: among which groups are dealt out, `learner.data_parallel`.
        chunk_groups: what the recipe asks for; rounded up to a multiple of the ranks.
        streams: False where credit looks at the whole batch.
    """
    if not streams:
        return groups_per_step
    return min(-(-chunk_groups // num_ranks) * num_ranks, groups_per_step)
