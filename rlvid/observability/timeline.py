"""The timeline of a phase: what each row does, written down as it changes, summed up step by step.

The loop says at each turn what every row is doing; saying the same again costs a comparison. Rows
are "learner", "weights", "rollout/<actor>" and "rewards/<scorer>"; the part before the slash is
the role, and waits name a role: `waits("learner", "rewards", now)`.

    timeline = open_timeline(phase_folder, now_s=clock.now())
    timeline.busy("rollout/actor-0.0", "sample", now, group="000012-0003")
    timeline.waits("rollout/actor-0.0", "learner", now)      # nothing may be issued yet
    timeline.away("rollout/actor-0.0", now)                  # gone, or being started
    metrics |= timeline.step_done(step, now, videos=64, staleness={0: 3, 1: 5})

It writes trace.json (every interval; see `rlvid.observability.trace` for its bound) and
steps.jsonl (one line a step: its window and metrics, never rewritten, so what was done twice is
there twice). Times that come in are of the loop's clock, real or virtual; the files have Unix time.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rlvid.observability.append_log import AppendLog, whole_lines
from rlvid.observability.intervals import Interval, Span, role_times, window_metrics
from rlvid.observability.recovery import Recovery, StepWindow
from rlvid.observability.trace import Trace

TRACE_FILE = "trace.json"
STEPS_FILE = "steps.jsonl"
BUNCH, BUNCH_S = 100, 1.0
"""Events, and seconds, that a kill can lose of the trace."""
MIN_WAIT_S = 1e-3
"""Shorter waits are counted but not written."""

Label = str | int | float


@dataclass(slots=True)
class _Row:
    """What a row does now, and since when it can."""

    what: str
    is_wait: bool
    since_s: float
    labels: Mapping[str, Label]
    present_since_s: float


@dataclass(slots=True)
class _Window:
    """What is counted until the step is done."""

    start_s: float
    lost_s: float = 0.0
    restarts: Counter[str] = field(default_factory=Counter)
    wasted_videos: Counter[str] = field(default_factory=Counter)
    wasted_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


class Timeline:
    """Made by `open_timeline`; used by the loop's thread alone."""

    def __init__(
        self, trace: Trace, steps: AppendLog, recovery: Recovery, *, now_s: float, unix_s: float
    ) -> None:
        """Args:
        unix_s: Unix time at `now_s` of the loop's clock.
        """
        self._trace, self._steps, self._recovery = trace, steps, recovery
        self._offset_s = unix_s - now_s
        self._rows: dict[str, _Row] = {}
        self._closed: list[Interval] = []
        self._presence: defaultdict[str, list[Span]] = defaultdict(list)
        self._window = _Window(start_s=now_s)

    def busy(self, row: str, work: str, at_s: float, **labels: Label) -> None:
        """Say that the row works from now on; ends what it did before."""
        self._change(row, work, at_s, is_wait=False, labels=labels)

    def waits(self, row: str, on: str, at_s: float, **labels: Label) -> None:
        """Say that the row has nothing to do until the role `on` has done something."""
        self._change(row, on, at_s, is_wait=True, labels=labels)

    def away(self, row: str, at_s: float) -> None:
        """Say that the row is gone or not up yet: it is not idle, since it could not work."""
        before = self._rows.pop(row, None)
        if before is not None:
            self._end(row, before, at_s)
            self._presence[row].append((before.present_since_s, at_s))

    def work(self, row: str, work: str, start_s: float, end_s: float, **labels: Label) -> None:
        """Record work after the fact; it may overlap other work of the row.

        What lies before the present step counts to no step's metrics, so long work wants `busy`.
        """
        self._add(Interval(row=row, what=work, start_s=start_s, end_s=end_s), labels)

    def waiting(self, row: str, on: str, start_s: float, end_s: float) -> None:
        """Record a wait after the fact."""
        self._add(Interval(row=row, what=on, start_s=start_s, end_s=end_s, is_wait=True), {})

    @contextmanager
    def span(self, row: str, work: str, **labels: Label) -> Iterator[None]:
        """Record how long the block took, also when it fails; for a loop on `time.monotonic`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.work(row, work, began, time.monotonic(), **labels)

    def restarted(self, role: str, at_s: float, *, lost_s: float = 0.0, reason: str = "") -> None:
        """Count a restart of one of the role's processes.

        Args:
            lost_s: wall time before `at_s`, inside the present step, in which the run came no
                further because of it. 0 where others went on with its work.
        """
        self._window.restarts[role] += 1
        self._window.lost_s += max(0.0, min(lost_s, at_s - self._window.start_s))
        self._trace.mark(role, "restart", at_s + self._offset_s, {"reason": reason})

    def went_back(self, step: int, at_s: float) -> None:
        """Say that a checkpoint of `step` steps was loaded: what came after it is done again.

        What was done of the present step before is lost, unless the run only begins.
        """
        self._recovery.back_to(step)
        if self._recovery.has_steps:
            self._window.lost_s = max(0.0, at_s - self._window.start_s)
        self._trace.mark("learner", "back", at_s + self._offset_s, {"step": step})

    def wasted(self, reason: str, *, videos: int, seconds: float) -> None:
        """Count sampled videos that no step will train on, e.g. for reason "stale" or "late"."""
        self._window.wasted_videos[reason] += videos
        self._window.wasted_s[reason] += seconds

    def step_done(
        self, step: int, at_s: float, *, videos: int = 0, staleness: Mapping[int, int] | None = None
    ) -> dict[str, float]:
        """Close the step's window and return its metrics, by the names of the metrics table.

        Args:
            step: optimiser steps done, this one included.
            at_s: when it was done; may lie before what was said since.
            videos: rollouts it consumed.
            staleness: versions behind to groups consumed.
        """
        window, start_s = self._window, self._window.start_s
        times = role_times(self._intervals(at_s), self._spans(at_s), start_s, at_s)
        metrics = window_metrics(times, at_s - start_s)
        metrics |= {f"stale/{lag}/count": float(n) for lag, n in sorted((staleness or {}).items())}
        metrics |= {f"ft/{role}/restarts": float(n) for role, n in window.restarts.items()}
        metrics |= {f"waste/{why}/videos": float(n) for why, n in window.wasted_videos.items()}
        metrics |= {f"waste/{why}/seconds": s for why, s in window.wasted_s.items()}
        if at_s > start_s:
            metrics["rollout/videos/per_s"] = videos / (at_s - start_s)
        done = StepWindow(
            step=step,
            start_s=start_s + self._offset_s,
            end_s=at_s + self._offset_s,
            lost_s=window.lost_s,
        )
        self._recovery.add(done)
        metrics["ft/lost/seconds"] = self._recovery.lost_s
        metrics["ft/ettr/frac"] = self._recovery.ettr
        self._steps.add(step_line(done, metrics))
        self._trace.mark("learner", f"step {step}", done.end_s, {"step": step})
        self._forget_before(at_s)
        return metrics

    def seconds_in_state(self, row: str, now_s: float) -> float:
        """Return since when the row does what it does; 0 when it is away."""
        state = self._rows.get(row)
        return 0.0 if state is None else now_s - state.since_s

    def flush_if_due(self) -> None:
        """Write what is kept back for a second; call it once a turn."""
        self._trace.flush_if_due()

    def close(self, at_s: float) -> None:
        """End what every row does and write all."""
        for row in list(self._rows):
            self.away(row, at_s)
        self._trace.close()
        self._steps.close()

    def _change(
        self, row: str, what: str, at_s: float, *, is_wait: bool, labels: Mapping[str, Label]
    ) -> None:
        before = self._rows.get(row)
        if before is not None:
            if (before.what, before.is_wait, before.labels) == (what, is_wait, labels):
                return
            self._end(row, before, at_s)
        since = at_s if before is None else before.present_since_s
        self._rows[row] = _Row(what, is_wait, at_s, labels, since)

    def _end(self, row: str, state: _Row, at_s: float) -> None:
        self._add(self._interval(row, state, at_s), state.labels)

    @staticmethod
    def _interval(row: str, state: _Row, at_s: float) -> Interval:
        return Interval(
            row=row, what=state.what, start_s=state.since_s, end_s=at_s, is_wait=state.is_wait
        )

    def _add(self, interval: Interval, labels: Mapping[str, Label]) -> None:
        if interval.end_s > self._window.start_s:
            self._closed.append(interval)
        seconds = interval.end_s - interval.start_s
        if interval.is_wait and seconds < MIN_WAIT_S:
            return
        name = f"waits for {interval.what}" if interval.is_wait else interval.what
        kind = "wait" if interval.is_wait else "work"
        start_s = interval.start_s + self._offset_s
        self._trace.add(interval.row, name, start_s, seconds, labels, kind=kind)

    def _intervals(self, now_s: float) -> list[Interval]:
        """Return all of the window, those that go on included."""
        going_on = [self._interval(row, state, now_s) for row, state in self._rows.items()]
        return [*self._closed, *going_on]

    def _spans(self, now_s: float) -> dict[str, list[Span]]:
        spans = {row: list(found) for row, found in self._presence.items()}
        for row, state in self._rows.items():
            spans.setdefault(row, []).append((state.present_since_s, now_s))
        return spans

    def _forget_before(self, at_s: float) -> None:
        self._closed = [interval for interval in self._closed if interval.end_s > at_s]
        for row in list(self._presence):
            self._presence[row] = [span for span in self._presence[row] if span[1] > at_s]
            if not self._presence[row]:
                del self._presence[row]
        self._window = _Window(start_s=at_s)


def open_timeline(folder: Path, *, now_s: float, unix_s: float | None = None) -> Timeline:
    """Return the timeline of a phase; a resumed one goes on in the same files.

    Args:
        now_s: time of the loop's clock.
        unix_s: what that is in Unix time; the present when left out.
    """
    unix_s = time.time() if unix_s is None else unix_s
    steps = AppendLog(folder / STEPS_FILE)
    recovery = Recovery()
    for line in whole_lines(steps.path):
        row = json.loads(line)
        if "step" in row:
            recovery.add(StepWindow(**{name: row[name] for name in WINDOW_FIELDS}))
        else:
            recovery.began(row["start_s"])
    recovery.began(unix_s)
    steps.add(json.dumps({"start_s": round(unix_s, 3)}))
    trace = Trace(folder / TRACE_FILE, bunch=BUNCH, bunch_s=BUNCH_S)
    return Timeline(trace, steps, recovery, now_s=now_s, unix_s=unix_s)


WINDOW_FIELDS = ("step", "start_s", "end_s", "lost_s")


def step_line(window: StepWindow, metrics: Mapping[str, float]) -> str:
    """Return the line of steps.jsonl: the window and its metrics."""
    times = {name: round(getattr(window, name), 3) for name in WINDOW_FIELDS}
    shown = {name: round(value, 6) for name, value in metrics.items()}
    return json.dumps({**times, "metrics": shown})
