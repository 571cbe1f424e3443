"""`rlvid optimise`: search the fastest setting of a policy that stays near its plain clips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlvid.launch.cli_options import Overrides, default_folder
from rlvid.launch.cli_policies import RecipeOption, policy_at, recipe_for

if TYPE_CHECKING:
    from rich.console import Console

    from rlvid.config import Recipe
    from rlvid.config.inference import SearchSpace
    from rlvid.inference.search import Found, LeftOut, Point
    from rlvid.launch.optimise import OptimiseSettings
    from rlvid.models.policy import Policy

HEADINGS = ("", "s/clip", "speed", "pairs", "PSNR", "feat.", "reward", "setting")
"""Of the terminal's table: those of `rlvid.launch.optimise.COLUMNS` in little room."""
MARKS = {"chosen": "*", "front": "+", "": ""}


def optimise(
    what: Annotated[
        str, typer.Argument(metavar="POLICY", help="A run folder, a pipeline folder, or tiny.")
    ],
    overrides: Overrides = None,
    recipe: RecipeOption = None,
    space: Annotated[
        Path | None,
        typer.Option(help="YAML file of what is tried (config.inference.SearchSpace)."),
    ] = None,
    slim_decoder: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Tried beside the VAE: what slim-decoder wrote."),
    ] = None,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Every combination; else axis by axis.")
    ] = False,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="Clips of each prompt.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Timed pairs of each setting.")] = 5,
    min_psnr: Annotated[
        float, typer.Option(help="dB against the plain clips that the chosen one keeps.")
    ] = 30.0,
    max_reward_loss: Annotated[
        float, typer.Option(min=0.0, help="Mean reward that the chosen one may lose.")
    ] = 0.01,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result; runs/<name>-optimise.")
    ] = None,
) -> None:
    """Measure speed and distance of inference settings, and keep the fastest near one."""
    from rich.console import Console

    from rlvid.config.inference import SearchSpace
    from rlvid.config.inference_files import load_search_space

    loaded = recipe_for(what, recipe, overrides)
    tried = load_search_space(space) if space is not None else SearchSpace()
    decoders = (*tried.slim_decoder, *(str(folder) for folder in slim_decoder or ()))
    tried = tried.model_copy(update={"slim_decoder": tuple(dict.fromkeys(decoders))})
    from rlvid.inference.search import Bounds
    from rlvid.launch.optimise import OptimiseSettings, write_found

    settings = OptimiseSettings(
        num_prompts=prompts,
        num_seeds=seeds,
        repeats=repeats,
        bounds=Bounds(min_psnr_db=min_psnr, max_reward_loss=max_reward_loss),
        is_exhaustive=exhaustive,
    )
    policy, console = policy_at(what), Console()
    found = _search(loaded, policy, tried, settings, console)
    _show(found, console)
    folder = out or default_folder(f"{loaded.name}-optimise", resume=False)
    typer.echo(f"chosen: {found.chosen.config.describe()}")
    typer.echo(f"written: {write_found(folder, found, loaded, policy, settings)}")


def _search(
    recipe: Recipe,
    policy: Policy,
    space: SearchSpace,
    settings: OptimiseSettings,
    console: Console,
) -> Found:
    """Search with a bar that names each setting as it is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from rlvid.inference.search import num_settings
    from rlvid.launch.optimise import optimise_policy

    columns = (
        TextColumn("optimise"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        most = num_settings(space, is_exhaustive=settings.is_exhaustive)
        bar = progress.add_task("plain", total=most)

        def on_measured(result: Point | LeftOut) -> None:
            progress.update(bar, advance=1, description=result.config.describe())

        return optimise_policy(recipe, policy, space, settings, on_measured=on_measured)


def _show(found: Found, console: Console) -> None:
    """Print the table, and what could not be tried here.

    Figures never wrap at 80 columns; the setting stands last and takes what is left.
    """
    from rich.table import Table

    from rlvid.launch.optimise import table_rows

    table = Table(
        title="settings beside the plain model, fastest first; * chosen, + on the Pareto front",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for heading in HEADINGS[:-1]:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(HEADINGS[-1], overflow="fold")
    for setting, *figures, mark in table_rows(found):
        table.add_row(MARKS[mark], *figures, setting)
    console.print(table, highlight=False)
    for one in found.left_out:
        console.print(f"left out: {one.config.describe()}: {one.reason}", markup=False)


def add_optimise_command(app: typer.Typer) -> None:
    """Register the command of this file."""
    app.command(
        epilog="Examples: rlvid optimise tiny | rlvid optimise runs/quickstart_cpu --min-psnr 35 | "
        "rlvid optimise tiny --space space.yaml --exhaustive evaluate.num_denoising_steps=10 | "
        "rlvid optimise tiny --slim-decoder runs/quickstart_cpu-slim-decoder"
    )(optimise)
