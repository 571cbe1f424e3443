"""`rlvid run RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlvid.launch.cli_options import (
    Overrides,
    RecipeArgument,
    RunFolderOption,
    default_folder,
    show_logs,
)
from rlvid.launch.own_token import ask_for_token

if TYPE_CHECKING:
    from rlvid.config import Recipe


def add_run_command(app: typer.Typer) -> None:
    """Add `rlvid run`."""
    app.command(
        epilog="Examples: rlvid run quickstart_cpu seed=1 | "
        "rlvid run my.yaml --run-folder runs/first | rlvid run my.yaml --run-folder runs/first "
        "--resume | rlvid run my.yaml --run-folder runs/first --resume-if-exists --restarts 5"
    )(run)


def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run_folder: RunFolderOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder where it stopped.")
    ] = False,
    resume_if_exists: Annotated[
        bool,
        typer.Option(
            "--resume-if-exists",
            help="Continue the run in --run-folder, or start it there: for launchers, which "
            "give the same command every time.",
        ),
    ] = False,
    restarts: Annotated[
        int,
        typer.Option(
            "--restarts", min=0, help="Start the driver so often again, with --resume, if it dies."
        ),
    ] = 0,
    stall_s: Annotated[
        float,
        typer.Option(
            "--stall",
            min=5.0,
            help="With --restarts: seconds without a sign of life after which a driver is killed.",
        ),
    ] = 60.0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, write recipe and versions, then stop."),
    ] = False,
    doctor: Annotated[
        bool,
        typer.Option(
            "--doctor",
            help="First look at every node of cluster.address; nothing starts if one is broken.",
        ),
    ] = False,
) -> None:
    """Run the phases of a recipe and write a report.

    Exit status: 0 done; 2 an error of the user's; 75 asked to make room, run it again to go on.
    """
    from rlvid.config.loader import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    ask_for_token(loaded)
    if resume_if_exists and (run_folder is None or resume):
        raise ValueError(
            "run: --resume-if-exists looks into the --run-folder that is given with it: expected "
            "one, and no --resume. Name the folder, the same for every attempt."
        )
    folder = run_folder or default_folder(loaded.name, resume=resume)
    resume = resume or (resume_if_exists and holds_run(folder))
    if restarts:
        from rlvid.launch.restarts import driver_command, run_with_restarts

        flags = [*["--resume"] * resume, *["--doctor"] * doctor]
        first = driver_command(recipe, overrides or (), folder, *flags)
        again = driver_command(recipe, overrides or (), folder, "--resume-if-exists")
        raise typer.Exit(run_with_restarts(first, again, restarts=restarts, stall_s=stall_s))
    show_logs()
    from rlvid.launch.planner import check_machine

    check_machine(loaded)
    if dry_run:
        rehearse(loaded, folder, resume=resume)
        return
    if doctor:
        from rlvid.launch.cli_doctor import examine_before_run

        examine_before_run(loaded.cluster.address)
    from rlvid.launch.run import run_recipe

    typer.echo(f"run folder: {folder}", err=True)
    typer.echo(f"report: {run_recipe(loaded, folder, resume=resume)}")


def rehearse(recipe: Recipe, folder: Path, *, resume: bool) -> None:
    """Do everything of a run that comes before its first phase."""
    from rich.console import Console

    from rlvid.launch import planner
    from rlvid.launch.phases.base import open_phase
    from rlvid.launch.preflight import preflight
    from rlvid.launch.run_folder import open_run_folder

    for index, name in enumerate(recipe.phases):
        open_phase(name, index)
    preflight(recipe)
    planned = planner.plan(recipe)
    open_run_folder(folder, recipe, resume=resume)
    Console().print(planner.render(planned), highlight=False)
    typer.echo(f"dry run: wrote {folder}/recipe.yaml and versions.json")
    typer.echo(f"start it with --run-folder {folder} --resume")


def holds_run(folder: Path) -> bool:
    """Return whether there is a run in the folder that can be resumed."""
    return (folder / "recipe.yaml").is_file()
