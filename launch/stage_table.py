"""The table of a run's stages as evaluation.json has it, from what `launch.stages` measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rlvid.config import Recipe
from rlvid.config.stages import StagesConfig
from rlvid.evaluation.stages import Cell, Line, Measured, TableSettings, motion_share, table
from rlvid.launch.stages import Column, StageCell, num_function_evaluations

REWARD = "reward"
"""Name of the weighted sum in tables, beside the scorers' own names."""


def lines_of(recipe: Recipe, stages: StagesConfig) -> list[Line]:
    """Return a line for the reward, one for every axis, one for every scorer and judge.

    Args:
        recipe: with the judges in the pool.
    """
    trained = {scorer.label for scorer in recipe.rewards.scorers if scorer.weight}
    labels = [scorer.label for scorer in recipe.rewards.scorers]
    return [
        Line(name=REWARD, labels=(REWARD,), trained=True),
        *(
            Line(name=axis, labels=chosen, trained=bool(trained & set(chosen)))
            for axis, chosen in stages.axes.items()
        ),
        *(Line(name=label, labels=(label,), trained=label in trained) for label in labels),
    ]


def stages_tree(recipe: Recipe, cells: Sequence[StageCell]) -> dict[str, Any]:
    """Return the key `stages` of evaluation.json; nothing where `evaluate.stages` is left out.

    Args:
        cells: of every column and set of prompts, the base's first.
    """
    stages = recipe.evaluate.stages
    if stages is None:
        return {}
    lines = lines_of(recipe, stages)
    settings = TableSettings(
        tie_margin=stages.tie_margin,
        num_bootstrap=recipe.evaluate.num_bootstrap,
        confidence=recipe.evaluate.confidence,
    )
    by_set: dict[str, list[StageCell]] = {}
    for cell in cells:
        by_set.setdefault(cell.prompts, []).append(cell)
    columns: dict[str, dict[str, Any]] = {
        cell.column.name: _column(recipe, cell.column) for cell in cells
    }
    for name, of_set in by_set.items():
        measured = {cell.column.name: _measured(cell) for cell in of_set}
        rows = table(list(measured.values()), lines, settings)
        for cell in of_set:
            teacher = measured[cell.column.teacher] if cell.column.teacher else None
            own = measured[cell.column.name]
            shares = motion_share(own, teacher, settings) if teacher else None
            columns[own.name]["sets"][name] = {
                "lines": _cells(rows[own.name]),
                "motion": statistics.fmean(cell.motion.values()),
                "motion_share": asdict(shares) if shares else None,
                "seconds_per_clip": cell.seconds_per_clip,
                **cell.shown.to_json(),
                "clips": _clips(cell),
            }
    found = {
        "tie_margin": stages.tie_margin,
        "lines": [asdict(line) for line in lines],
        "sets": list(by_set),
        "columns": list(columns.values()),
    }
    return {"stages": found}


def stage_lines(tree: Mapping[str, Any]) -> list[str]:
    """Return a line for each stage and set of prompts, of an evaluation.json, for who watches."""
    lines = []
    for column in tree.get("stages", {}).get("columns", ()):
        for name, cell in column["sets"].items():
            reward = cell["lines"][REWARD]
            text = f"stage {column['name']}, {name} prompts: reward {reward['mean']:.4f}"
            change = reward["vs_before"]
            if change is not None:
                text += (
                    f", against {column['before']} {change['difference']:+.4f} "
                    f"[{change['low']:+.4f}, {change['high']:+.4f}]"
                )
            lines.append(text)
    return lines


def _column(recipe: Recipe, column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "before": column.before,
        "teacher": column.teacher,
        "num_function_evaluations": num_function_evaluations(recipe, column),
        "sets": {},
    }


def _measured(cell: StageCell) -> Measured:
    return Measured(
        name=cell.column.name,
        scores=cell.scores,
        motion=cell.motion,
        before=cell.column.before,
        teacher=cell.column.teacher,
    )


def _cells(row: Mapping[str, Cell]) -> dict[str, Any]:
    return {name: asdict(cell) for name, cell in row.items()}


def _clips(cell: StageCell) -> list[dict[str, str]]:
    """Return the clips that were kept: path, the user's words, and the rewrite if there is one."""
    found = []
    for path, prompt in zip(cell.clips, cell.shown.prompts, strict=False):
        clip = {"path": path, "prompt": prompt.text}
        if prompt.enhanced_text is not None:
            clip["enhanced_prompt"] = prompt.enhanced_text
        found.append(clip)
    return found
