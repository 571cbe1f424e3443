"""`rlvid plan RECIPE`: who runs, what each phase costs, and what does not fit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlvid.config import Recipe

WIDTH = 110
"""Columns that the tables need; a narrower terminal folds their lines."""


def print_plan(recipe: Recipe, assume: Sequence[str]) -> None:
    """Print the plan of a recipe.

    Args:
        assume: "sampling_mfu=0.5" and the like.

    Raises:
        ValueError: an assumption is unknown, or the recipe cannot be planned; once all is printed,
            a process that does not fit onto its GPUs, or more CPUs or GPUs than there are.
    """
    from rich.console import Console

    from rlvid.launch import planner
    from rlvid.launch.estimate import phases, render
    from rlvid.launch.estimate.assumptions import read_assumptions

    assumed = read_assumptions(assume)
    planned = planner.plan(recipe)
    estimates = phases.estimate(recipe, planned, assumed)
    console = Console(width=max(Console().width, WIDTH))
    console.print(planner.render(planned), highlight=False)
    console.print(render.render(estimates, assumed), highlight=False)
    needs = sum(phase.disk_bytes for phase in estimates)
    free = shutil.disk_usage(Path.cwd()).free
    if needs > free:
        console.print(
            f"warning: the run leaves {needs / render.GIB:.1f} GiB on the disk, here are "
            f"{free / render.GIB:.1f} GiB free; give a --run-folder with more room",
            highlight=False,
        )
    misfits = phases.misfits(planned, assumed)
    if misfits:
        raise ValueError("\n".join(f"plan: {line}" for line in misfits))
    planner.check_machine(recipe)
