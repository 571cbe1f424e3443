"""What the planner said of a run beside what was reached, as rows of the report's table."""

from __future__ import annotations

from dataclasses import dataclass

NO_PEAK = "no peak known for this device"
"""Beside a role without a known GPU: of a CPU nobody wrote one down, and a guess would look like a
measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One role of the RL phase; None where the plan or the run does not say."""

    role: str
    planned_s: float | None
    """Of a step, busy."""
    measured_s: float | None
    assumed_mfu: float
    reached_mfu: float | None
    """Of the whole step's wall time, waiting included."""
    planned_mib: float | None
    """Of the process that needs most."""
    measured_mib: float | None

    def cells(self) -> list[str]:
        """Return the row as text."""
        return [
            self.role,
            NO_PEAK if self.planned_s is None else _seconds(self.planned_s),
            _seconds(self.measured_s),
            f"{self.assumed_mfu:.0%}",
            NO_PEAK if self.reached_mfu is None else f"{self.reached_mfu:.1%}",
            _mib(self.planned_mib),
            _mib(self.measured_mib),
        ]


HEADINGS = (
    "role",
    "planned s a step",
    "measured",
    "assumed MFU",
    "reached",
    "planned MiB",
    "measured",
)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
