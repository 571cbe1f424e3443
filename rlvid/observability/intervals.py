"""From who did what when to idle shares, waits and the ideal step time: pure functions.

A row is one that works, e.g. "learner", "rollout/actor-3.0" or "rewards/physics"; its role is the
part before the slash. A row is *present* from when it can take work until it is gone.

    work_s(role)   seconds in which its rows worked, overlapping intervals of a row counted once
    idle(role)     1 - work_s / present_s
    load_s(role)   seconds the role needs for the window's work when nobody makes it wait: the
                   window times its share of work for interchangeable rows (`POOLED`), else that of
                   its busiest row, since nobody else can do that row's work
    over_ideal     window / max(load_s of rollout, load_s of learner)

over_ideal is 1 when one of the two never waits, and (R + L) / max(R, L) in lock-step, which is all
that overlap can gain. Rewards are not in it: their latency can be hidden and their replicas scale,
so a pool that holds up the others shows as a ratio above 1 with waits for rewards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rlvid.observability.trace import POOLED

ROLES = ("learner", "rollout", "rewards", "weights")
"""Those that have metrics; other rows, e.g. "evaluate", are in the trace alone."""
IDEAL_ROLES = ("rollout", "learner")
Span = tuple[float, float]
"""Start and end in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """What one row did for a while; seconds of one clock."""

    row: str
    what: str
    """The work; of a wait, the role that is waited for."""
    start_s: float
    end_s: float
    is_wait: bool = False

    @property
    def role(self) -> str:
        return self.row.partition("/")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleTime:
    """One role in one window."""

    role: str
    present_s: float
    """Sum over its rows."""
    work_s: float
    waits_s: Mapping[str, float]
    """Role waited for to seconds, where there was no work at the same time."""
    load_s: float

    @property
    def idle_frac(self) -> float:
        return max(0.0, 1.0 - self.work_s / self.present_s) if self.present_s else 0.0

    def wait_frac(self, on: str) -> float:
        return self.waits_s[on] / self.present_s if self.present_s else 0.0


def role_times(
    intervals: Iterable[Interval],
    presence: Mapping[str, Sequence[Span]],
    start_s: float,
    end_s: float,
) -> dict[str, RoleTime]:
    """Return each role's time in the window [start_s, end_s].

    Args:
        intervals: in any order; what lies outside the window does not count.
        presence: row to the spans in which it could work; a row that is not in it was there all
            the time.
    """
    rows = {row: RowSpans() for row in presence}
    for interval in intervals:
        spans = rows.setdefault(interval.row, RowSpans())
        of_kind = spans.waits[interval.what] if interval.is_wait else spans.work
        of_kind += clip([(interval.start_s, interval.end_s)], start_s, end_s)
    by_role: dict[str, list[str]] = defaultdict(list)
    for row in sorted(rows):
        by_role[row.partition("/")[0]].append(row)
    times = {}
    for role, names in by_role.items():
        present_s = sum(
            length(clip(presence.get(row, [(start_s, end_s)]), start_s, end_s)) for row in names
        )
        if not present_s:
            continue
        worked = [length(rows[row].work) for row in names]
        waits_s: dict[str, float] = defaultdict(float)
        for row in names:
            for on, seconds in rows[row].waits_s().items():
                waits_s[on] += seconds
        times[role] = RoleTime(
            role=role,
            present_s=present_s,
            work_s=sum(worked),
            waits_s=dict(waits_s),
            load_s=((end_s - start_s) * sum(worked) / present_s if role in POOLED else max(worked)),
        )
    return times


@dataclass(slots=True)
class RowSpans:
    """What one row did inside a window."""

    work: list[Span] = field(default_factory=list)
    waits: defaultdict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))

    def waits_s(self) -> dict[str, float]:
        """Return the seconds waited for each role in which there was no work."""
        worked = length(self.work)
        return {on: length([*spans, *self.work]) - worked for on, spans in self.waits.items()}


def window_metrics(times: Mapping[str, RoleTime], window_s: float) -> dict[str, float]:
    """Return a window's metrics by their names in the table."""
    metrics = {}
    times = {role: time for role, time in times.items() if role in ROLES}
    for role, time in times.items():
        metrics[f"idle/{role}/frac"] = time.idle_frac
        for on in time.waits_s:
            metrics[f"idle/{role}/on_{on}_frac"] = time.wait_frac(on)
        metrics[f"overlap/{role}/seconds"] = time.load_s
    ideal_s = max((times[role].load_s for role in IDEAL_ROLES if role in times), default=0.0)
    if ideal_s > 0:
        metrics["overlap/step/over_ideal"] = window_s / ideal_s
    learner = times.get("learner")
    if learner is not None:
        metrics["reward_pool/exposed_tail/seconds"] = learner.waits_s.get("rewards", 0.0)
    return metrics


def clip(spans: Iterable[Span], start_s: float, end_s: float) -> list[Span]:
    """Return the parts of the spans inside the window."""
    cut = [(max(low, start_s), min(high, end_s)) for low, high in spans]
    return [(low, high) for low, high in cut if high > low]


def length(spans: Iterable[Span]) -> float:
    """Return the length of the union of spans."""
    total, reached = 0.0, float("-inf")
    for low, high in sorted(spans):
        if high > reached:
            total += high - max(low, reached)
            reached = high
    return total
