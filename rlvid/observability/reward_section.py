"""The part of the report about the reward itself: scorers, how they agree, guards, alarms.

Everything is read from rows of metrics.jsonl; the functions return charts and tables of plain
values that the template lays out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlvid.observability.charts import WIDE, Mark, Series, line_chart

Rows = Sequence[Mapping[str, Any]]
"""Rows of metrics.jsonl: {"phase", "step", "metrics"}."""
NUM_COLOURS = 6
"""Of the page."""
GUARD_TITLES = {
    "over_exposure": "Over-exposed pixels",
    "stillness": "Stillness",
    "saturation": "Saturation",
    "grid": "Grid pattern",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmRow:
    """One alarm, as alarms.jsonl has it."""

    phase: str
    step: int
    kind: str
    subject: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixCell:
    """A scorer against another one."""

    value: float | None
    """Spearman's rho inside groups; None where nobody knows."""
    note: str
    """What the other kinds of correlation say."""

    @property
    def shade(self) -> int:
        """Strength of the colour in percent."""
        return round(min(abs(self.value or 0.0), 1.0) * 70)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Correlations of the last step that has any."""

    step: int
    names: Sequence[str]
    cells: Sequence[Sequence[MatrixCell | None]]
    """[K, K], None on the diagonal."""


def marks_of(alarms: Sequence[AlarmRow]) -> list[Mark]:
    """Return a line for each step with alarms."""
    by_step: dict[int, list[str]] = {}
    for alarm in alarms:
        by_step.setdefault(alarm.step, []).append(f"{alarm.kind}: {alarm.subject}")
    return [Mark(at=float(step), label="; ".join(texts)) for step, texts in by_step.items()]


def scorer_charts(rows: Rows, marks: Sequence[Mark] = ()) -> list[str]:
    """Return one chart a scorer or judge, training and held-out."""
    names = sorted(
        {
            name.split("/")[1]
            for row in rows
            for name in row["metrics"]
            if name.startswith(("rewards/", "heldout/"))
            and name.endswith("/mean")
            and name.count("/") == 2
        }
        - {"reward"}
    )
    charts = []
    for name in names:
        training = points(rows, f"rewards/{name}/mean")
        held_out = points(rows, f"heldout/{name}/mean")
        charts.append(
            line_chart(
                name,
                [
                    Series(label="training", points=training),
                    Series(label="held-out", points=held_out, colour=1, marks_points=True),
                ],
                note="" if training else "held-out judge: it scores no training rollout",
                marks=marks,
            )
        )
    return [chart for chart in charts if chart]


def weight_chart(rows: Rows) -> str:
    """Return the weights in force, where a curriculum moves one; "" where all stay."""
    lines = {
        name.split("/")[1]: points(rows, name)
        for name in sorted({n for row in rows for n in row["metrics"]})
        if name.startswith("rewards/") and name.endswith("/weight")
    }
    if all(len({value for _, value in line}) == 1 for line in lines.values()):
        return ""
    return line_chart(
        "Weights in force",
        [
            Series(label=name, points=line, colour=number % NUM_COLOURS)
            for number, (name, line) in enumerate(lines.items())
        ],
        size=WIDE,
    )


def guard_charts(rows: Rows, marks: Sequence[Mark] = ()) -> list[str]:
    """Return one chart a guard, training rollouts and held-out clips; more is worse."""
    charts = [
        line_chart(
            title,
            [
                Series(label="training", points=points(rows, f"guards/{name}/mean")),
                Series(
                    label="held-out",
                    points=points(rows, f"guards/{name}/heldout_mean"),
                    colour=1,
                    marks_points=True,
                ),
            ],
            marks=marks,
            axis_holds=(0.0, 0.1),  # else a guard that stays at 1e-5 looks as if it jumped
        )
        for name, title in GUARD_TITLES.items()
    ]
    return [chart for chart in charts if chart]


def correlation_chart(rows: Rows) -> str:
    """Return the rank correlations inside groups over the steps."""
    found = _pairs(rows)
    return line_chart(
        "Rank correlation of scorers inside groups",
        [
            Series(
                label=" and ".join(pair),
                points=points(rows, f"correlation/{'~'.join(pair)}/spearman_in_group"),
                colour=number % NUM_COLOURS,
            )
            for number, pair in enumerate(found)
        ],
        note="Spearman over a window of steps. Below 0 what one scorer gains the other loses.",
        size=WIDE,
    )


def correlation_matrix(rows: Rows) -> Matrix | None:
    """Return the table of the last step that has correlations; None where no step has."""
    pairs = _pairs(rows)
    last = [row for row in rows if any(n.startswith("correlation/") for n in row["metrics"])]
    if not last:
        return None
    metrics = max(last, key=lambda row: float(row["step"]))["metrics"]
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    cells = [[None if one == two else _cell(metrics, one, two) for two in names] for one in names]
    step = max(int(row["step"]) for row in last)
    return Matrix(step=step, names=names, cells=cells)


def _cell(metrics: Mapping[str, float], one: str, two: str) -> MatrixCell:
    kinds = {}
    for kind in ("pearson", "spearman", "pearson_in_group", "spearman_in_group"):
        for pair in (f"{one}~{two}", f"{two}~{one}"):
            if f"correlation/{pair}/{kind}" in metrics:
                kinds[kind] = metrics[f"correlation/{pair}/{kind}"]
    note = ", ".join(f"{kind.replace('_', ' ')} {value:+.2f}" for kind, value in kinds.items())
    return MatrixCell(value=kinds.get("spearman_in_group"), note=note or "no spread")


def _pairs(rows: Rows) -> list[tuple[str, str]]:
    """Return the pairs of scorers in the order in which they first appear."""
    found: dict[tuple[str, str], None] = {}
    for row in rows:
        for name in row["metrics"]:
            if name.startswith("correlation/"):
                first, _, second = name.split("/")[1].partition("~")
                found[first, second] = None
    return list(found)


def points(rows: Rows, name: str) -> list[tuple[float, float]]:
    """Return (step, value) of the rows that have the metric, by step."""
    found = [(float(r["step"]), float(r["metrics"][name])) for r in rows if name in r["metrics"]]
    return sorted(found)
