"""The mark of every recipe for GPUs, in its header and its row of configs/README.md. Writes them.

    python -m tests.bench.recipe_marks

A recipe is smoke-tested once `tests/bench/results/cpu_tiny_recipes.json` has its row: it ran whole,
to its report, with its settings on the tiny model (`tests.bench.tiny_recipes`). Without the file,
or without a row, it is planned. A test holds headers and rows to the file.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from rlvid.config.loader import find_recipe
from tests.bench.tiny_recipes import RECIPES

RESULTS = Path(__file__).parent / "results" / "cpu_tiny_recipes.json"
PLANNED = "planned"
SMOKE_TESTED = "smoke-tested (its settings on the tiny model, CPU)"
MARKS = (PLANNED, SMOKE_TESTED)
_LINE = re.compile(r"^# Mark: .*\.$", re.MULTILINE)
"""Of a header; the mark stands alone in it."""


def mark_of(recipe: str, results: Path = RESULTS) -> str:
    """Return the mark that a recipe has earned."""
    if not results.is_file():
        return PLANNED
    rows = json.loads(results.read_text(encoding="utf-8"))["recipes"]
    return SMOKE_TESTED if recipe in {row["recipe"] for row in rows} else PLANNED


def marked_header(text: str, mark: str) -> str:
    """Return a recipe's file with the mark in its header.

    Raises:
        ValueError: the header has not exactly one line for it.
    """
    marked, lines = _LINE.subn(f"# Mark: {mark}.", text)
    if lines != 1:
        raise ValueError(f'header: expected one line "# Mark: {mark}.", got {lines}')
    return marked


def marked_row(text: str, recipe: str, mark: str) -> str:
    """Return configs/README.md with the mark at the end of the recipe's row.

    Raises:
        ValueError: the table of recipes for GPUs has not exactly one row of it.
    """
    either = "|".join(re.escape(known) for known in MARKS)
    row = re.compile(rf"^(\| `{re.escape(recipe)}` \| .* \|) (?:{either}) \|$", re.MULTILINE)
    marked, rows = row.subn(rf"\1 {mark} |", text)
    if rows != 1:
        raise ValueError(f"configs/README.md: expected one row of {recipe} with a mark, got {rows}")
    return marked


def main() -> None:
    readme = find_recipe(RECIPES[0]).parent / "README.md"
    table = readme.read_text(encoding="utf-8")
    for recipe in RECIPES:
        mark, file = mark_of(recipe), find_recipe(recipe)
        file.write_text(marked_header(file.read_text(encoding="utf-8"), mark), encoding="utf-8")
        table = marked_row(table, recipe, mark)
        sys.stdout.write(f"{recipe}: {mark}\n")
    readme.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
