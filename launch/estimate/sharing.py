"""How long roles take on the GPUs they hold, those included that share one.

Ray's fraction of a GPU says where a process is put; it holds nothing back. A process that is alone
at work has all of its GPU, whatever its fraction, and processes that work on one GPU take turns: a
stage lasts as long as all they have to do together. Nothing is added for the changes of turn.

With W GPU-seconds of work and n processes on whole GPUs, g to a process, a role takes W / (n g).
With a part of a GPU each it takes W / min(n, D), and all that share sum(W) / D, where D GPUs hold
all such processes of the phase.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

EPSILON = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The GPUs that the processes of a role hold."""

    num_processes: int
    num_gpus: float
    """Of one process; a fraction where it shares one."""

    @property
    def is_shared(self) -> bool:
        return 0.0 < self.num_gpus < 1.0


def shared_devices(held: Iterable[Held]) -> int:
    """Return on how many GPUs the processes with a part of one lie, packed largest first."""
    parts = [role.num_gpus for role in held if role.is_shared for _ in range(role.num_processes)]
    free: list[float] = []
    for part in sorted(parts, reverse=True):
        place = next((i for i, room in enumerate(free) if room >= part - EPSILON), None)
        if place is None:
            free.append(1.0 - part)
        else:
            free[place] -= part
    return len(free)


def held_devices(held: Iterable[Held]) -> float:
    """Return the GPUs that roles hold together; one that is shared counts whole."""
    held = tuple(held)
    wholes = sum(role.num_processes * role.num_gpus for role in held if not role.is_shared)
    return wholes + shared_devices(held)


def usable_devices(held: Held, num_shared: int) -> float:
    """Return the GPUs that a role has to itself while nobody else works."""
    if held.is_shared:
        return float(min(held.num_processes, num_shared))
    return held.num_processes * held.num_gpus


def together(
    work: Mapping[str, float],
    alone: Mapping[str, float],
    held: Mapping[str, Held],
    num_shared: int,
) -> float:
    """Return how long roles take that work beside one another.

    Args:
        work: GPU-time of each role.
        alone: time of each role on its GPUs, were it alone on them.
        num_shared: GPUs that are shared.
    """
    in_turn = sum(amount for role, amount in work.items() if held[role].is_shared)
    return max(*alone.values(), in_turn / num_shared if in_turn else 0.0)
