"""What the planner said of a run beside what was reached, as rows of the report's table."""

from __future__ import annotations

from dataclasses import dataclass

NO_PEAK = "no peak"
"""Beside a role without a known GPU: of a CPU nobody wrote one down, and a guess would look like a
measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One role of the RL phase; None where the plan or the run does not say."""

    role: str
    planned_s: float | None
    """Of a step, busy."""
    measured_s: float | None
    assumed_mfu: float | None
    """None where the plan leaves out what the role computes: most scorers."""
    reached_mfu: float | None
    """Of the whole step's wall time, waiting included."""
    planned_mib: float | None
    """Of the process that needs most."""
    measured_mib: float | None
    is_counted: bool = True
    """Whether its FLOPs are known, so that a peak is all that its MFU can lack."""

    @property
    def is_measured(self) -> bool:
        return any(n is not None for n in (self.measured_s, self.reached_mfu, self.measured_mib))

    def cells(self) -> list[str]:
        """Return the row as text."""
        no_plan = "-" if self.assumed_mfu is None else NO_PEAK
        no_figure = NO_PEAK if self.is_counted else "-"
        return [
            self.role,
            no_plan if self.planned_s is None else _seconds(self.planned_s),
            _seconds(self.measured_s),
            "-" if self.assumed_mfu is None else f"{self.assumed_mfu:.0%}",
            no_figure if self.reached_mfu is None else f"{self.reached_mfu:.1%}",
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
