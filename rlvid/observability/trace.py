"""How long each role spent on what, as a Chrome trace (open in ui.perfetto.dev) and as totals.

The file is Chrome's JSON array format with one event a line; its closing bracket is optional, so a
run that is killed leaves a readable trace, and a resumed one appends. After `MAX_EVENTS` the file
becomes <name>.1.json in place of an older one, and a new file starts with its sums: the last
`MAX_EVENTS` or more are there, the totals are of the whole run, and the disk is bounded.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlvid.observability.append_log import AppendLog, whole_lines

logger = logging.getLogger(__name__)

MICRO = 1e6
MAX_EVENTS = 200_000
"""Of one file, about 35 MB; two files are kept."""
POOLED = ("rollout",)
"""Roles whose rows are summed up: actors come and go, and any of them may do any group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleTotal:
    """Time one role spent on one kind of work."""

    role: str
    work: str
    seconds: float
    count: int


class Totals:
    """Adds up events; rows of `POOLED` roles are one."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], tuple[float, int]] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        """Take an event of any kind."""
        if event["ph"] == "M":
            for role, work, seconds, count in event["args"]["of"]:
                self._add(role, work, seconds, count)
        elif event["ph"] == "X":
            role = event["tid"].partition("/")[0]
            row = role if role in POOLED else event["tid"]
            self._add(row, event["name"], event["dur"] / MICRO, 1)

    def rows(self) -> list[RoleTotal]:
        """Return the time of each (role, work), longest first."""
        rows = [
            RoleTotal(role=role, work=work, seconds=seconds, count=count)
            for (role, work), (seconds, count) in self._sums.items()
        ]
        return sorted(rows, key=lambda total: -total.seconds)

    def _add(self, role: str, work: str, seconds: float, count: int) -> None:
        before, times = self._sums.get((role, work), (0.0, 0))
        self._sums[role, work] = (before + seconds, times + count)


class Trace:
    """Appends events to `path`; roles are rows of the trace, work is the label of a bar."""

    def __init__(
        self, path: Path, *, bunch: int = 1, bunch_s: float = 0.0, max_events: int = MAX_EVENTS
    ) -> None:
        """Args:
        bunch, bunch_s: events, and seconds, that are kept back at most; by default none.
        """
        self.path = path
        self._max_events = max_events
        part = path.with_suffix(".part")
        if part.exists() and not path.exists():  # a crash in the middle of `_rotate`
            os.replace(part, path)
        self._log = AppendLog(path, first_line="[", bunch=bunch, bunch_s=bunch_s)
        self._totals, self._num_events = Totals(), 0
        for event in read_events(path):
            self._totals.add(event)
            self._num_events += 1

    @contextmanager
    def span(self, role: str, work: str, **labels: str | int | float) -> Iterator[None]:
        """Record how long the block took, also when it fails."""
        start_s, began = time.time(), time.perf_counter()
        try:
            yield
        finally:
            self.add(role, work, start_s, time.perf_counter() - began, labels)

    def add(
        self,
        role: str,
        work: str,
        start_s: float,
        duration_s: float,
        labels: Mapping[str, str | int | float] | None = None,
        *,
        kind: str = "work",
    ) -> None:
        """Record work that another process timed; `start_s` is Unix time.

        Args:
            role: the row; of "rollout/actor-0.0" the first part is the role.
            kind: "work", or "wait" for the time in which nothing could be done.
        """
        times = {"ts": round(start_s * MICRO), "dur": round(duration_s * MICRO)}
        place = {"pid": role.partition("/")[0], "tid": role}
        self._add({"name": work, "cat": kind, "ph": "X", **times, **place, "args": labels or {}})

    def mark(
        self, role: str, name: str, at_s: float, labels: Mapping[str, str | int | float]
    ) -> None:
        """Record a moment, e.g. that a step is done; `at_s` is Unix time."""
        event = {"name": name, "cat": "mark", "ph": "i", "s": "g", "ts": round(at_s * MICRO)}
        self._add({**event, "pid": role.partition("/")[0], "tid": role, "args": dict(labels)})

    def flush_if_due(self) -> None:
        """Write what is kept back when it is old enough."""
        self._log.flush_if_due()

    def close(self) -> None:
        """Write what is kept back."""
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _add(self, event: Mapping[str, Any]) -> None:
        self._log.add(json.dumps(event) + ",")
        self._totals.add(event)
        self._num_events += 1
        if self._num_events >= self._max_events:
            self._rotate()

    def _rotate(self) -> None:
        """Start a new file that begins with the sums of all before."""
        self._log.close()
        self._num_events = 1
        part = self.path.with_suffix(".part")
        try:
            totals = [[t.role, t.work, t.seconds, t.count] for t in self._totals.rows()]
            event = {"name": "totals", "ph": "M", "pid": "rlvid", "tid": "", "args": {"of": totals}}
            part.write_text(f"[\n{json.dumps(event)},\n", encoding="utf-8")
            os.replace(self.path, older(self.path))
            os.replace(part, self.path)
        except OSError as error:  # a view of the run must not end it; the next time is soon enough
            logger.warning("%s: not rotated: %s", self.path, error.strerror)


def older(path: Path) -> Path:
    """Return where the events before those of the trace are, if there were too many."""
    return path.with_suffix(".1.json")


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a trace; a line cut by a crash is left out."""
    for line in whole_lines(path):
        if line.endswith("},"):
            event: dict[str, Any] = json.loads(line[:-1])
            yield event


def read_totals(path: Path) -> list[RoleTotal]:
    """Return the time of each (role, work), longest first; rows of `POOLED` roles are one."""
    totals = Totals()
    for event in read_events(path):
        totals.add(event)
    return totals.rows()
