"""`rlvid slim-decoder`: teach a small decoder the frames of a policy's VAE."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlvid.launch.cli_options import Overrides, default_folder
from rlvid.launch.cli_policies import RecipeOption, policy_at, recipe_for

if TYPE_CHECKING:
    from rlvid.config import Recipe
    from rlvid.launch.slim_decoder import SlimReport, SlimSettings
    from rlvid.models.policy import Policy


def slim_decoder(
    what: Annotated[
        str, typer.Argument(metavar="POLICY", help="A run folder, a pipeline folder, or tiny.")
    ],
    overrides: Overrides = None,
    recipe: RecipeOption = None,
    clips: Annotated[int, typer.Option(min=1, help="Sampled to learn from.")] = 192,
    heldout: Annotated[int, typer.Option(min=1, help="Held-out prompts to measure on.")] = 16,
    at_once: Annotated[int, typer.Option(min=1, help="Prompts sampled together.")] = 8,
    crop: Annotated[
        int, typer.Option(min=2, help="Latent positions of a side that are learned from.")
    ] = 32,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 3000,
    width: Annotated[
        int, typer.Option(min=1, help="Features at the finest level; TAEW2.1 has 64.")
    ] = 32,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of each level; TAEW2.1 has 3.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result; runs/<name>-slim-decoder.")
    ] = None,
) -> None:
    """Train a small decoder on clips of a policy, and measure it against the VAE."""
    loaded = recipe_for(what, recipe, overrides)
    from rlvid.inference.slim_training import SlimTraining
    from rlvid.launch.slim_decoder import SlimSettings

    settings = SlimSettings(
        num_clips=clips,
        num_heldout=heldout,
        batch_prompts=at_once,
        crop=crop,
        width=width,
        num_blocks=blocks,
        training=SlimTraining(num_steps=steps),
    )
    folder = out or default_folder(f"{loaded.name}-slim-decoder", resume=False)
    report = _make(loaded, policy_at(what), settings, folder)
    typer.echo(report.describe())
    typer.echo(f"written: {folder}")


def _make(recipe: Recipe, policy: Policy, settings: SlimSettings, folder: Path) -> SlimReport:
    """Make it with a bar for the clips and one for the steps."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from rlvid.launch.slim_decoder import make_slim_decoder

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        clips = progress.add_task("sample", total=settings.num_clips + settings.num_heldout)
        steps = progress.add_task("train", total=settings.training.num_steps)

        def on_clips(count: int) -> None:
            progress.update(clips, advance=count)

        def on_step(loss: float) -> None:
            progress.update(steps, advance=1, description=f"train, loss {loss:.4f}")

        return make_slim_decoder(
            recipe, policy, settings, folder, on_clips=on_clips, on_step=on_step
        )


def add_slim_decoder_command(app: typer.Typer) -> None:
    """Register the command of this file."""
    app.command(
        epilog="Examples: rlvid slim-decoder tiny | "
        "rlvid slim-decoder runs/distillation_tiny_cpu --steps 6000 --out slim"
    )(slim_decoder)
