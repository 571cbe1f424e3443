"""The estimate as text: a table of the work, and one of the phases with their total."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlvid.launch.estimate.assumptions import Assumptions
from rlvid.launch.estimate.phases import PhaseEstimate

if TYPE_CHECKING:
    from rich.console import RenderableType

GIB = 2**30
PETA = 1e15
HEADINGS = ("phase", "PFLOP", "GPU-h busy", "hours", "GPUs", "GPU-h held", "peak GiB", "disk GiB")


def render(estimates: Sequence[PhaseEstimate], assumed: Assumptions) -> RenderableType:
    """Return the estimate for a terminal."""
    from rich.console import Group
    from rich.table import Table

    if not estimates:
        return Group("cost: the FLOPs of this transformer are not known, so there is no estimate")
    table = Table(title="what is computed", title_justify="left")
    for heading in ("phase", "work", "amount", "PFLOP", "GPU-h"):
        table.add_column(heading, justify="right" if heading in ("PFLOP", "GPU-h") else "left")
    for phase in estimates:
        for work, hours in phase.work:
            table.add_row(
                phase.phase,
                work.what,
                work.amount,
                "unknown" if work.flops is None else figure(work.flops / PETA),
                "-" if hours is None else figure(hours),
            )
    on_gpus = any(phase.num_gpus for phase in estimates)
    basis = (
        assumption_lines(assumed) if on_gpus else ["no role has a GPU, so there are no GPU-hours"]
    )
    return Group(table, "\n".join(phase_lines(estimates)), "", *basis)


def phase_lines(estimates: Sequence[PhaseEstimate]) -> list[str]:
    """Return a line for each phase, with headings above and the total below.

    Hours are of what runs on GPUs; a phase without any has none.
    """
    rows = [_row(phase) for phase in estimates]
    total = (
        "total",
        figure(sum(phase.flops for phase in estimates) / PETA),
        *_hours(
            sum(phase.gpu_hours for phase in estimates),
            sum(phase.hours for phase in estimates),
            max(phase.num_gpus for phase in estimates),
            sum(phase.held_gpu_hours for phase in estimates),
        ),
        figure(max(phase.peak_mib for phase in estimates) / 1024),
        figure(sum(phase.disk_bytes for phase in estimates) / GIB),
    )
    table = [HEADINGS, *rows, total]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]


def assumption_lines(assumed: Assumptions) -> list[str]:
    """Return what the estimate stands on."""
    values = ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in assumed.model_dump().items()
    )
    return [
        f"assumed, not measured (--assume NAME=VALUE): {values}",
        f"peak {assumed.peak / 1e12:.1f} TFLOP/s dense bfloat16 a GPU; busy: work over peak and "
        "utilisation; held: all GPUs of a phase for as long as its slowest role takes; starting "
        "up, loading and what runs on CPUs are left out",
    ]


def figure(value: float) -> str:
    """Return a number with three digits, or all that are before the point."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _row(phase: PhaseEstimate) -> tuple[str, ...]:
    return (
        phase.phase,
        figure(phase.flops / PETA),
        *_hours(phase.gpu_hours, phase.hours, phase.num_gpus, phase.held_gpu_hours),
        figure(phase.peak_mib / 1024),
        figure(phase.disk_bytes / GIB),
    )


def _hours(busy: float, hours: float, num_gpus: float, held: float) -> tuple[str, ...]:
    if not num_gpus:
        return ("-", "-", "0", "-")
    return (figure(busy), figure(hours), f"{num_gpus:g}", figure(held))
