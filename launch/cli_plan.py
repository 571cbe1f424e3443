"""`rlvid plan RECIPE`: who runs, what each phase costs, and what does not fit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlvid.launch.cli_options import Overrides, RecipeArgument

if TYPE_CHECKING:
    from rlvid.config import Recipe
    from rlvid.launch.estimate.phases import PhaseEstimate
    from rlvid.launch.planner import Plan

WIDTH = 120
"""Columns that the tables need; a narrower terminal folds their lines."""


def add_plan_command(app: typer.Typer) -> None:
    """Add `rlvid plan`."""
    app.command(
        epilog="Examples: rlvid plan quickstart_cpu rollout.num_actors=4 | "
        "rlvid plan my.yaml --assume sampling_mfu=0.5 --assume 'gpu=NVIDIA H200' | "
        "rlvid plan wan2.1_14b_lora --cluster 4x8xH200 --price 3.5 | "
        "rlvid plan quickstart_cpu --measure | "
        "rlvid plan my.yaml --simulate --costs runs/first --actors 1,4,16 --staleness 0,1"
    )(plan)


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Run the loop in virtual time instead.")
    ] = False,
    actors: Annotated[
        str | None, typer.Option(help="With --simulate: numbers of actors, e.g. 1,4,16.")
    ] = None,
    staleness: Annotated[
        str | None, typer.Option(help="With --simulate: max_staleness, e.g. 0,1,2.")
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(help="With --simulate: a file of costs, or the folder of a run."),
    ] = None,
    failures: Annotated[
        Path | None, typer.Option(help="With --simulate: a file of failure rates.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="With --simulate: steps; at most 50 when left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --simulate: as JSON.")] = False,
    assume: Annotated[
        list[str] | None,
        typer.Option(
            "--assume",
            metavar="NAME=VALUE",
            help="Of the cost estimate, e.g. sampling_mfu=0.5; may be repeated.",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="NODESxGPUSxKIND",
            help="Split these GPUs best between the roles of the RL phase, e.g. 4x8xH100.",
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0.0, help="With --cluster: of one GPU for an hour.")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Without GPUs: time the work on the cores here, and say a step's time.",
        ),
    ] = False,
) -> None:
    """Show what a recipe needs: processes, GPUs, memory, and each phase's cost; or its times."""
    from rlvid.config.loader import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    options = (actors, staleness, costs, failures, steps, as_json or None)
    if simulate:
        if assume or cluster or price is not None or measure:
            raise ValueError(
                "plan: --assume, --cluster, --price and --measure belong to the estimate; leave "
                "out --simulate"
            )
        from rlvid.launch.cli_simulate import simulate_recipe

        typer.echo(
            simulate_recipe(
                loaded,
                actors=actors,
                staleness=staleness,
                costs=costs,
                failures=failures,
                steps=steps,
                as_json=as_json,
            )
        )
        return
    if any(option is not None for option in options):
        raise ValueError(
            "plan: --actors, --staleness, --costs, --failures, --steps and --json belong to "
            "--simulate; add it"
        )
    if price is not None and cluster is None:
        raise ValueError("plan: --price is of a GPU of --cluster; add it, e.g. --cluster 4x8xH100")
    print_plan(loaded, assume or (), cluster=cluster, price=price, measure=measure)


def print_plan(
    recipe: Recipe,
    assume: Sequence[str],
    *,
    cluster: str | None = None,
    price: float | None = None,
    measure: bool = False,
) -> None:
    """Print the plan of a recipe.

    Args:
        assume: "sampling_mfu=0.5" and the like.
        cluster: "4x8xH100", whose GPUs are to be split between the roles of the RL phase.
        price: of one of its GPUs for an hour.
        measure: a step's work on this machine's cores.

    Raises:
        ValueError: an assumption or the cluster is unknown, the recipe cannot be planned, or not
            be measured; once all is printed, a process that does not fit onto its GPUs, no split
            that fits the cluster, or, without one, more CPUs or GPUs than there are.
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
    for warning in _warnings(recipe, planned, estimates, is_elsewhere=gpus is not None):
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)
    misfits = [f"plan: {line}" for line in phases.misfits(planned, assumed)]
    if gpus is not None:
        from rlvid.launch.estimate.recipe_split import split_problem
        from rlvid.launch.estimate.render_split import split_lines

        problem = split_problem(recipe, planned, assumed, gpus)
        if problem is None:
            lines = [_no_split(estimates, price)]
        else:
            lines = split_lines(recipe, problem, gpus, price=price)
        console.print("", *lines, sep="\n", highlight=False, soft_wrap=True)
    if measure:
        from rlvid.launch.estimate.render_cpu_step import cpu_step_lines

        with console.status("each role does a few groups on the cores here"):
            lines = cpu_step_lines(recipe)
        console.print("", *lines, sep="\n", highlight=False, soft_wrap=True)
    if misfits:
        raise ValueError("\n".join(misfits))
    if gpus is None:
        planner.check_machine(recipe)


def _warnings(
    recipe: Recipe, planned: Plan, estimates: Sequence[PhaseEstimate], *, is_elsewhere: bool
) -> Iterator[str]:
    """Yield what a run of the recipe would meet; nothing of this machine for one elsewhere."""
    from rlvid.launch import planner
    from rlvid.launch.clip_checks import outside_native
    from rlvid.launch.estimate.render import GIB

    unlike = outside_native(recipe.model)
    if unlike:
        yield unlike
    if is_elsewhere:
        return
    needs = sum(phase.disk_bytes for phase in estimates)
    free = shutil.disk_usage(Path.cwd()).free
    if needs > free:
        yield (
            f"the run leaves {needs / GIB:.1f} GiB on the disk, here are {free / GIB:.1f} GiB "
            "free; give a --run-folder with more room"
        )
    short = planner.short_of_memory(recipe, planned)
    if short:
        yield short


def _no_split(estimates: Sequence[PhaseEstimate], price: float | None) -> str:
    """Return why nothing was split, and what the hours of the estimate cost."""
    from rlvid.launch.estimate.render import figure

    why = "--cluster: its GPUs are split for phase grpo, which this recipe does not have"
    held = sum(phase.held_gpu_hours for phase in estimates)
    if price is None:
        return why
    if not held:
        return f"{why}; --price: the estimate has no GPU-hours"
    return (
        f"{why}; --price: as the recipe is, {figure(held)} GPU-hours held cost "
        f"{figure(held * price)}"
    )
