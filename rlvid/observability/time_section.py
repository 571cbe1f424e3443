"""The part of the report about time: who worked when, who waited for whom, what that cost.

Read from a phase's steps.jsonl and trace.json (`rlvid.observability.timeline`); the functions
return charts and plain values that the template lays out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvid.observability.append_log import whole_lines
from rlvid.observability.intervals import IDEAL_ROLES, Interval
from rlvid.observability.progress import duration_text
from rlvid.observability.timeline import STEPS_FILE, TRACE_FILE
from rlvid.observability.trace import MICRO, older, read_events

LAST_STEPS = 6
"""Steps that the chart of rows shows; more would be a blur."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """One line of steps.jsonl."""

    step: int
    start_s: float
    """Unix time."""
    end_s: float
    metrics: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTime:
    """The time of one phase."""

    phase: str
    steps: Sequence[StepTime]
    """In order of time; what was done twice is there twice."""
    intervals: Sequence[Interval]
    """Of the last `LAST_STEPS` steps, in Unix time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeFact:
    """A line of the table of numbers."""

    name: str
    value: str
    note: str


def read_phase_time(folder: Path) -> PhaseTime | None:
    """Return the time of the phase in `folder`, None when no step of it was timed."""
    steps = []
    for line in whole_lines(folder / STEPS_FILE):
        row: dict[str, Any] = json.loads(line)
        if "step" in row:
            names = ("step", "start_s", "end_s", "metrics")
            steps.append(StepTime(**{name: row[name] for name in names}))
    if not steps:
        return None
    since_s = steps[-LAST_STEPS:][0].start_s
    trace = folder / TRACE_FILE
    intervals = [
        interval
        for path in (older(trace), trace)
        for interval in intervals_of(path)
        if interval.end_s > since_s and interval.start_s < steps[-1].end_s
    ]
    return PhaseTime(phase=folder.name, steps=steps, intervals=intervals)


def intervals_of(trace: Path) -> Iterable[Interval]:
    """Yield the intervals of a trace in Unix time."""
    for event in read_events(trace):
        if event["ph"] == "X":
            is_wait = event.get("cat") == "wait"
            start_s = event["ts"] / MICRO
            yield Interval(
                row=event["tid"],
                what=event["name"].removeprefix("waits for ") if is_wait else event["name"],
                start_s=start_s,
                end_s=start_s + event["dur"] / MICRO,
                is_wait=is_wait,
            )


def mean_over_time(steps: Sequence[StepTime], name: str) -> float | None:
    """Return the mean of a metric, each step by its length; None when no step has it.

    A step without it counts as 0 where others have it: nobody waited there.
    """
    if not any(name in step.metrics for step in steps):
        return None
    total_s = sum(step.seconds for step in steps)
    return sum(step.metrics.get(name, 0.0) * step.seconds for step in steps) / total_s


def over_ideal(steps: Sequence[StepTime]) -> float | None:
    """Return the wall time of all steps over what the busier of actors and learner needed."""
    ideal_s = max(
        sum(step.metrics.get(f"overlap/{role}/seconds", 0.0) for step in steps)
        for role in IDEAL_ROLES
    )
    return sum(step.seconds for step in steps) / ideal_s if ideal_s > 0 else None


def waits(steps: Sequence[StepTime], role: str) -> dict[str, float]:
    """Return whom the role waited for and for which share of the time, the longest first."""
    prefix = f"idle/{role}/on_"
    names = sorted({name for step in steps for name in step.metrics if name.startswith(prefix)})
    found = {
        name.removeprefix(prefix).removesuffix("_frac"): mean_over_time(steps, name) or 0.0
        for name in names
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def sums(steps: Sequence[StepTime], area: str, statistic: str) -> dict[str, float]:
    """Return the sums over all steps of area/<part>/statistic, by part."""
    total: Counter[str] = Counter()
    for step in steps:
        for name, value in step.metrics.items():
            first, part, last = name.split("/")
            if (first, last) == (area, statistic):
                total[part] += value  # type: ignore[assignment]
    return dict(total)


def facts(phase: PhaseTime) -> list[TimeFact]:
    """Return the numbers that say where the time went, the most telling first."""
    steps = phase.steps
    found = [
        idle_fact(steps, "learner", "learner idle"),
        idle_fact(steps, "rollout", "actors idle"),
    ]
    ratio = over_ideal(steps)
    if ratio is not None:
        found.append(
            TimeFact(
                name="step over ideal",
                value=f"{ratio:.2f}",
                note="wall time over what the busier of actors and learner needs; 1 is ideal",
            )
        )
    tail = mean_of(steps, "reward_pool/exposed_tail/seconds")
    if tail is not None:
        note = "in which the learner waited for nothing but scores, on average"
        found.append(TimeFact(name="reward tail of a step", value=f"{tail:.2f} s", note=note))
    for role, label in (("learner", "learner"), ("rollout", "actors"), ("decoder", "decoder")):
        share = mean_over_time(steps, f"mfu/{role}/frac")
        if share is not None:
            note = "model FLOPs over the devices' dense bf16 peak, waiting included"
            found.append(TimeFact(name=f"MFU of the {label}", value=f"{share:.1%}", note=note))
    found += recovery_facts(steps)
    videos, seconds = sums(steps, "waste", "videos"), sums(steps, "waste", "seconds")
    if sum(videos.values()):
        why = ", ".join(f"{number:.0f} {reason}" for reason, number in videos.items() if number)
        lost = f"{sum(seconds.values()):.1f} s of work; {why}"
        value = f"{sum(videos.values()):.0f} videos"
        found.append(TimeFact(name="sampled for nothing", value=value, note=lost))
    return [fact for fact in found if fact.value]


def idle_fact(steps: Sequence[StepTime], role: str, name: str) -> TimeFact:
    """Return how long a role was idle and whom it waited for."""
    share = mean_over_time(steps, f"idle/{role}/frac")
    on = ", ".join(f"{on} {part:.1%}" for on, part in waits(steps, role).items() if part >= 0.0005)
    note = f"waited for {on}" if on else "no wait was recorded"
    return TimeFact(name=name, value="" if share is None else f"{share:.1%}", note=note)


def recovery_facts(steps: Sequence[StepTime]) -> list[TimeFact]:
    """Return what failures cost."""
    restarts = {role: n for role, n in sums(steps, "ft", "restarts").items() if n}
    last = steps[-1].metrics
    ettr = last.get("ft/ettr/frac")
    if ettr is None:
        return []
    shown = ", ".join(f"{role} {number:.0f}" for role, number in restarts.items())
    return [
        TimeFact(
            name="wall time in the policy",
            value=f"{ettr:.1%}",
            note=f"{duration_text(last.get('ft/lost/seconds', 0.0))} lost; "
            f"restarts: {shown or 'none'}",
        )
    ]


def mean_of(steps: Sequence[StepTime], name: str) -> float | None:
    """Return the mean of a metric over the steps that have it."""
    values = [step.metrics[name] for step in steps if name in step.metrics]
    return sum(values) / len(values) if values else None


def staleness(steps: Sequence[StepTime]) -> dict[int, int]:
    """Return versions behind to groups consumed, of all steps."""
    total: Counter[int] = Counter()
    for lag, count in sums(steps, "stale", "count").items():
        total[int(lag)] += round(count)
    return dict(sorted(total.items()))
