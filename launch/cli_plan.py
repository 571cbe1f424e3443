"""`rlvid plan RECIPE`: who runs, what each phase costs, and what does not fit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlvid.config import Recipe

WIDTH = 120
"""Columns that the tables need; a narrower terminal folds their lines."""


def print_plan(
    recipe: Recipe,
    assume: Sequence[str],
    *,
    cluster: str | None = None,
    price: float | None = None,
) -> None:
    """Print the plan of a recipe.

    Args:
        assume: "sampling_mfu=0.5" and the like.
        cluster: "4x8xH100", whose GPUs are to be split between the roles of the RL phase.
        price: of one of its GPUs for an hour.

    Raises:
        ValueError: an assumption or the cluster is unknown, or the recipe cannot be planned; once
            all is printed, a process that does not fit onto its GPUs, no split that fits the
            cluster, or, without one, more CPUs or GPUs than there are.
    """
    from rich.console import Console

    from rlvid.launch import planner
    from rlvid.launch.estimate import phases, render
    from rlvid.launch.estimate.assumptions import read_assumptions
    from rlvid.launch.estimate.gpu_cluster import assume_cluster, read_cluster

    gpus = None if cluster is None else read_cluster(cluster)
    assumed = read_assumptions(assume) if gpus is None else assume_cluster(gpus, assume)
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
    short = planner.short_of_memory(recipe, planned)
    if short:
        console.print(f"warning: {short}", highlight=False)
    misfits = [f"plan: {line}" for line in phases.misfits(planned, assumed)]
    if gpus is not None:
        from rlvid.launch.estimate.recipe_split import split_problem
        from rlvid.launch.estimate.render_split import split_lines

        problem = split_problem(recipe, planned, assumed, gpus)
        if problem is not None:
            lines = split_lines(recipe, problem, gpus, price=price)
            console.print("", *lines, sep="\n", highlight=False, soft_wrap=True)
    if misfits:
        raise ValueError("\n".join(misfits))
    if gpus is None:
        planner.check_machine(recipe)
