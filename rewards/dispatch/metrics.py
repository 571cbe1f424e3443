"""What the pool counts, over the whole run and since the last step; names as in METRICS."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

KEPT_LATENCIES = 1000


@dataclass(slots=True)
class Tally:
    """Counts of one service over one stretch of time."""

    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_LATENCIES))
    busy_s: float = 0.0
    num_calls: int = 0
    num_items: int = 0
    num_places: int = 0
    """Clips the calls could have held."""
    num_errors: int = 0
    num_retries: int = 0
    num_timeouts: int = 0
    num_replaced: int = 0
    num_openings: int = 0
    num_hits: int = 0
    num_lookups: int = 0
    queue_max: int = 0

    def metrics(self, name: str) -> dict[str, float]:
        """Return counts and, where there are any calls, latency and fill of scorer `name`."""
        row = {
            "calls": self.num_calls,
            "queue_max": self.queue_max,
            "errors": self.num_errors,
            "retries": self.num_retries,
            "timeouts": self.num_timeouts,
            "replaced": self.num_replaced,
            "breaker_openings": self.num_openings,
        }
        found = {f"rewards/{name}/{key}": float(value) for key, value in row.items()}
        if self.num_lookups:
            found[f"rewards/{name}/cache_hit_frac"] = self.num_hits / self.num_lookups
        if self.num_calls:
            found[f"rewards/{name}/busy_s"] = self.busy_s
            found[f"rewards/{name}/batch_fill_frac"] = self.num_items / self.num_places
            ordered = sorted(self.latencies_s)
            for percent in (50, 95, 99):
                value = ordered[min(percent * len(ordered) // 100, len(ordered) - 1)]
                found[f"rewards/{name}/latency_p{percent}_s"] = value
        return found


@dataclass(slots=True)
class PoolTally:
    """Counts of the whole pool over one stretch of time."""

    services: dict[str, Tally] = field(default_factory=dict)
    decode_s: float = 0.0
    peak_mib: float = 0.0
    """Most memory a process that decodes had held."""
    num_decoded: int = 0
    """Groups."""
    last_submit: float | None = None
    last_score: float | None = None

    def of(self, service: str) -> Tally:
        return self.services.setdefault(service, Tally())

    @property
    def exposed_tail_s(self) -> float:
        """Seconds between the last group that came and the last score, 0 while none is done."""
        if self.last_submit is None or self.last_score is None:
            return 0.0
        return max(0.0, self.last_score - self.last_submit)


class PoolMetrics:
    """Counts everything twice: for the run, and for the step that goes on."""

    def __init__(self) -> None:
        self._run = PoolTally()
        self._step = PoolTally()

    def submitted(self, now: float) -> None:
        for tally in (self._run, self._step):
            tally.last_submit = now

    def group_done(self, now: float) -> None:
        for tally in (self._run, self._step):
            tally.last_score = now

    def decoded(self, seconds: float, peak_mib: float) -> None:
        for tally in (self._run, self._step):
            tally.decode_s += seconds
            tally.num_decoded += 1
            tally.peak_mib = max(tally.peak_mib, peak_mib)

    def call_done(
        self, service: str, latency_s: float, num_items: int, num_places: int, busy_s: float
    ) -> None:
        """Note a call that was answered; `latency_s` from its dispatch to its answer."""
        for tally in self._both(service):
            tally.latencies_s.append(latency_s)
            tally.busy_s += busy_s
            tally.num_calls += 1
            tally.num_items += num_items
            tally.num_places += num_places

    def queued(self, service: str, length: int) -> None:
        for tally in self._both(service):
            tally.queue_max = max(tally.queue_max, length)

    def looked_up(self, service: str, *, hit: bool) -> None:
        for tally in self._both(service):
            tally.num_lookups += 1
            tally.num_hits += hit

    def count(self, service: str, what: str, by: int = 1) -> None:
        """Add to `num_<what>`: errors, retries, timeouts, replaced or openings."""
        for tally in self._both(service):
            name = f"num_{what}"
            setattr(tally, name, getattr(tally, name) + by)

    def metrics(
        self, live: Mapping[str, Mapping[str, float]], *, of_step: bool
    ) -> dict[str, float]:
        """Return one row.

        Args:
            live: scorer to what is so now: "queue_now", "replicas", "peak_tflops"; "" is the
                decoder, which has the last of them only.
            of_step: counts since the last `start_step` instead of those of the run.
        """
        tally = self._step if of_step else self._run
        row = {
            "reward_pool/decode/seconds": tally.decode_s,
            "reward_pool/decode/groups": float(tally.num_decoded),
            "reward_pool/exposed_tail/seconds": tally.exposed_tail_s,
            **({"reward_pool/memory/peak_mb": tally.peak_mib} if tally.peak_mib else {}),
        }
        for name, values in live.items():
            if not name:
                row |= {f"reward_pool/devices/{key}": value for key, value in values.items()}
                continue
            row |= tally.of(name).metrics(name)
            row |= {f"rewards/{name}/{key}": value for key, value in values.items()}
        return row

    def start_step(self) -> None:
        """Forget the step's counts."""
        self._step = PoolTally()

    def _both(self, service: str) -> tuple[Tally, Tally]:
        return self._run.of(service), self._step.of(service)
