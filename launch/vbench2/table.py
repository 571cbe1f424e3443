"""The result of a benchmark run: a row for each dimension, groups, total; as JSON and as a table.

Both back ends end here, so that their figures are aggregated by one rule. A dimension that nobody
judged has no value and is named; it counts as 0 nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlvid.evaluation.vbench2.dimensions import DIMENSIONS, totals

if TYPE_CHECKING:
    from rich.table import Table

RESULT = "vbench2.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One dimension."""

    name: str
    value: float | None
    """In [0, 1]; None where no video was judged."""
    num_judged: int
    num_excluded: int
    """By the dimension's rule."""
    num_unjudged: int = 0
    """No answer, no measurement, or a file that cannot be read."""
    num_absent: int = 0
    """Videos that the benchmark wants and the folder has not."""
    by: str = ""
    """Who judged it; "nobody" where no specialist was given."""


def result(rows: Sequence[Row], *, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of vbench2.json.

    Args:
        source: who judged and with which settings, for the reader of the file.
    """
    values = {row.name: row.value for row in rows}
    tree: dict[str, Any] = {
        "dimensions": {
            row.name: {"group": DIMENSIONS[row.name].group, **asdict(row)} for row in rows
        },
        "groups": {},
        "total": None,
        "mean": None,
        "missing": list(DIMENSIONS),
        "num_excluded": sum(row.num_excluded for row in rows),
        "num_unjudged": sum(row.num_unjudged for row in rows),
        "num_absent": sum(row.num_absent for row in rows),
        "source": dict(source),
    }
    if any(value is not None for value in values.values()):
        found = totals(values)
        tree |= {
            "groups": dict(found.groups),
            "total": found.total,
            "mean": found.mean,
            "missing": list(found.missing),
        }
    return tree


def write(path: Path, tree: Mapping[str, Any]) -> None:
    """Write the file whole or not at all; DiskFullError where there is no room."""
    from rlvid.durable import write_file

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, [(json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()])


def render(tree: Mapping[str, Any]) -> Table:
    """Return the table for a terminal."""
    from rich.table import Table

    table = Table(title="VBench-2.0", title_justify="left")
    for heading in ("dimension", "value", "judged", "excluded", "unjudged", "absent", "by"):
        table.add_column(heading, overflow="fold")
    for row in tree["dimensions"].values():
        counts = [row[f"num_{name}"] for name in ("judged", "excluded", "unjudged", "absent")]
        table.add_row(row["name"], _number(row["value"]), *map(str, counts), row["by"])
    table.add_section()
    for group, value in tree["groups"].items():
        table.add_row(group, _number(value))
    table.add_row("total (mean of the 5 groups)", _number(tree["total"]))
    table.add_row("mean of the dimensions", _number(tree["mean"]))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
