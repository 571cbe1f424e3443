"""How long each role spent on what, as a Chrome trace (open in ui.perfetto.dev) and as totals.

The file is Chrome's JSON array format with one event a line; its closing bracket is optional, so a
run that is killed leaves a readable trace, and a resumed one appends.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MICRO = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleTotal:
    """Time one role spent on one kind of work."""

    role: str
    work: str
    seconds: float
    count: int


class Trace:
    """Appends events to `path`; roles are rows of the trace, work is the label of a bar."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
    ) -> None:
        """Record work that another process timed; `start_s` is Unix time."""
        event = {
            "name": work,
            "ph": "X",
            "ts": round(start_s * MICRO),
            "dur": round(duration_s * MICRO),
            "pid": "rlvid",
            "tid": role,
            "args": dict(labels or {}),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        opening = "" if self.path.exists() else "[\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{opening}{json.dumps(event)},\n")


def read_totals(path: Path) -> list[RoleTotal]:
    """Return the time of each (role, work), longest first; a line cut by a crash is left out."""
    sums: dict[tuple[str, str], tuple[float, int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        if not line.endswith("},"):
            continue
        event = json.loads(line[:-1])
        key = (event["tid"], event["name"])
        seconds, count = sums.get(key, (0.0, 0))
        sums[key] = (seconds + event["dur"] / MICRO, count + 1)
    totals = [
        RoleTotal(role=role, work=work, seconds=seconds, count=count)
        for (role, work), (seconds, count) in sums.items()
    ]
    return sorted(totals, key=lambda total: -total.seconds)
