"""What a calibration found: rows, their JSON and their tables."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from rich.console import Group
from rich.table import Table

REQUIRED_AUC = 0.95
"""What a scorer must reach on everything it claims to see."""
REQUIRED_RHO = 0.8
"""How far its score must fall, in rank correlation, with the strength of a graded breakage."""
MAX_MISSING_FRAC = 0.1
"""Of the clips of one task; a scorer that judges few clips well keeps no claim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRow:
    """One scorer against one breakage or task."""

    scorer: str
    breakage: str
    """A breakage of the tiny world or a name of `calibration.tasks.TASKS`."""
    is_claimed: bool
    """Whether the scorer says that it sees this breakage."""
    auc: float
    """Probability that a true clip scores above a broken one."""
    low: float
    high: float
    """95 % bootstrap interval of the auc."""
    true_mean: float
    broken_mean: float
    num_clips: int
    """Clips on each side."""
    num_missing: int
    """Clips of both sides that it could not judge; they are left out of the auc."""

    @property
    def is_kept(self) -> bool:
        enough = self.num_missing <= MAX_MISSING_FRAC * 2 * self.num_clips
        return enough and self.auc >= REQUIRED_AUC


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedRow:
    """One scorer along one breakage of rising strength."""

    scorer: str
    task: str
    rho: float
    """Spearman's rank correlation of score and strength; -1 is perfect."""
    num_clips: int
    num_missing: int
    """Of them, those that it could not judge; they are left out of rho."""

    @property
    def is_kept(self) -> bool:
        enough = self.num_missing <= MAX_MISSING_FRAC * self.num_clips
        return enough and self.rho <= -REQUIRED_RHO


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerRow:
    """One scorer's speed and what it does not see."""

    scorer: str
    clips_per_s: float
    """By the wall clock, one process."""
    cpu_ms_per_clip: float
    """Of this process, so it holds on a busy machine too; a server's time is not in it."""
    blind_to: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """What `rlvid rewards calibrate` prints."""

    rows: tuple[CalibrationRow, ...]
    seed: int
    graded: tuple[GradedRow, ...] = ()
    scorers: tuple[ScorerRow, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    """Scorer to why it could not be opened."""

    @property
    def failures(self) -> tuple[CalibrationRow | GradedRow, ...]:
        """Claims that are not kept."""
        broken = tuple(row for row in self.rows if row.is_claimed and not row.is_kept)
        return broken + tuple(row for row in self.graded if not row.is_kept)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def render(report: CalibrationReport) -> Table:
    """Return the rows as a table; claims that are not kept are red."""
    table = Table(title="Scorers against broken clips (AUC, 95 % interval)")
    for heading in ("scorer", "breakage", "claimed", "AUC", "interval", "true", "broken"):
        table.add_column(heading, justify="left" if heading in ("scorer", "breakage") else "right")
    for row in report.rows:
        style = "red" if row in report.failures else ("bold" if row.is_claimed else "dim")
        table.add_row(
            row.scorer,
            row.breakage,
            "yes" if row.is_claimed else "",
            f"{row.auc:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
            f"{row.true_mean:.3f}",
            f"{row.broken_mean:.3f}",
            style=style,
        )
    return table


def render_all(report: CalibrationReport) -> Group:
    """Return every table of the report that has rows."""
    tables = [render(report)] if report.rows else []
    if report.graded:
        graded = Table("scorer", "graded breakage", "rank correlation", "clips", "missing")
        for row in report.graded:
            counts = (str(row.num_clips), str(row.num_missing))
            style = "" if row.is_kept else "red"
            graded.add_row(row.scorer, row.task, f"{row.rho:.3f}", *counts, style=style)
        tables.append(graded)
    if report.scorers:
        speed = Table("scorer", "clips/s", "CPU ms a clip", "blind to")
        for item in report.scorers:
            blind = "; ".join(item.blind_to)
            speed.add_row(
                item.scorer, f"{item.clips_per_s:.0f}", f"{item.cpu_ms_per_clip:.2f}", blind
            )
        tables.append(speed)
    if report.skipped:
        skipped = Table("not measured", "why")
        for name, why in report.skipped.items():
            skipped.add_row(name, why)
        tables.append(skipped)
    return Group(*tables)
