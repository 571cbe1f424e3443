"""What the loop asks of the world: a clock, rollouts, rewards and a learner.

Real ports are the Ray pools and the learner group; virtual ones (launch.simulate) answer after
costs in virtual time. The loop cannot tell which it has, so what is proved of it in virtual time
holds for a run. No call of a port waits, except `Clock.wait`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from rlvid.actors.pool import LostGroup, SampledGroup
from rlvid.algorithms.score_table import RewardTable
from rlvid.bell import Bell
from rlvid.launch.loop.schedule import Chunk
from rlvid.records import GroupTask, StepReport, WeightsManifest
from rlvid.rewards.scoring import GroupScores

Answer = TypeVar("Answer", covariant=True)
Published = tuple[WeightsManifest, Any]
"""A manifest and what the actors fetch the buckets from."""


class Clock(Protocol):
    """Time, and sleep until there is news."""

    def now(self) -> float:
        """Return seconds that never go back."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return when a port may have news, or after `timeout_s`."""
        ...


class Rollouts(Protocol):
    """Samples groups with the newest weights it was given."""

    def submit(
        self, task: GroupTask, *, min_version: int = -1, max_version: int | None = None
    ) -> None:
        """Have a group sampled by an actor that holds weights of these versions."""
        ...

    def collect(self, timeout_s: float) -> Sequence[SampledGroup | LostGroup]: ...

    def begin_publish(self, manifest: WeightsManifest, payload: Any) -> None:
        """Bring every actor to these weights, each when its present group is done."""
        ...

    @property
    def num_outstanding(self) -> int:
        """Groups submitted and not yet collected."""
        ...


class Rewards(Protocol):
    """Scores sampled groups."""

    def submit(self, group_ref: Any, scorers: Sequence[str] | None = None) -> int: ...

    def collect(self, timeout_s: float) -> Sequence[tuple[int, GroupScores]]: ...


class Pending(Protocol[Answer]):
    """An answer on its way."""

    def poll(self) -> bool:
        """Return whether it is there; raises what it failed with, or that it is late."""
        ...

    def result(self) -> Answer:
        """Return it, once `poll` said True."""
        ...


class Learner(Protocol):
    """Takes chunks of a batch in order; calls queue up and are answered in order."""

    def begin_chunk(
        self,
        groups: Mapping[str, Any],
        rewards: RewardTable,
        chunk: Chunk,
    ) -> Pending[StepReport | None]:
        """Add a chunk's gradient; the last one of a step takes the optimiser step and reports.

        Args:
            groups: group id to reference; the ids of `rewards.group_ids`, which may be fewer than
                the chunk's, since a quarantined prompt's group is dropped.
        """
        ...

    def begin_publish(self, version: int) -> Pending[Published]: ...


class BellClock:
    """Real time; sleeps on the bell that the ports ring."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell

    def now(self) -> float:
        return time.monotonic()

    def wait(self, timeout_s: float) -> None:
        self._bell.wait(timeout_s)
