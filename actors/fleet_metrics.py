"""What the fleet counts: a step's losses and refusals, and how the actors spent their time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rlvid.actors.fleet_records import Cause


@dataclass(slots=True)
class Usage:
    """Seconds, summed over a stretch of time."""

    ready_s: float = 0.0
    """Of actors that could work."""
    busy_s: float = 0.0
    """Of actors that sampled."""
    queued_s: float = 0.0
    """In which a group waited for an actor."""
    total_s: float = 0.0

    def add(self, seconds: float, *, num_ready: int, num_busy: int, is_queued: bool) -> None:
        self.ready_s += num_ready * seconds
        self.busy_s += num_busy * seconds
        self.queued_s += seconds * is_queued
        self.total_s += seconds

    @property
    def busy_frac(self) -> float:
        """Share of the ready actors' time in which they sampled; 0 where none was ready."""
        return self.busy_s / self.ready_s if self.ready_s else 0.0

    @property
    def queued_frac(self) -> float:
        return self.queued_s / self.total_s if self.total_s else 0.0


class FleetMetrics:
    """Counters since the last `take`, and usage for the step and for the autoscaler."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.step = Usage()
        self.since_scaling = Usage()
        self.num_lost = 0
        """Actors lost since the start of the run."""
        self.has_staged = False
        """Whether an actor ever took a publish."""
        self.has_passed = False
        """Whether an actor ever gave the right canary."""
        self._noted: float | None = None

    def spent(self, now: float, *, num_ready: int, num_busy: int, is_queued: bool) -> None:
        """Add the time since the last call, in which the numbers were as given."""
        seconds = 0.0 if self._noted is None else max(0.0, now - self._noted)
        self._noted = now
        for usage in (self.step, self.since_scaling):
            usage.add(seconds, num_ready=num_ready, num_busy=num_busy, is_queued=is_queued)

    def replaced(self, cause: Cause) -> None:
        self.num_lost += 1
        self.counts[f"rollout/replaced/{cause.value}"] += 1

    def take(self) -> dict[str, float]:
        """Return what happened since the last call, under the names of the metrics table."""
        found = {f"rollout/replaced/{cause.value}": 0.0 for cause in Cause if cause.replaces}
        found |= {
            "rollout/groups/late": 0.0,
            "rollout/groups/withdrawn": 0.0,
            "weights/rejected/count": 0.0,
            "weights/unreachable/count": 0.0,
            "rollout/canary/passed": 0.0,
            "rollout/canary/unchecked": 0.0,
        }
        found |= {name: float(count) for name, count in self.counts.items()}
        found["rollout/busy/frac"] = self.step.busy_frac
        found["rollout/queued/frac"] = self.step.queued_frac
        self.counts.clear()
        self.step = Usage()
        return found
