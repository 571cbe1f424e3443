"""The commands `rlvid rewards ...`, and `rlvid serve-rewards`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlvid.launch.cli_options import Overrides, RecipeArgument, show_logs
from rlvid.launch.own_token import ask_for_token

rewards_app = typer.Typer(no_args_is_help=True, help="List scorers, and test what they can see.")


@rewards_app.command("list")
def rewards_list() -> None:
    """List the scorers that ship, what they score and which broken clips they claim to see."""
    from rich.console import Console
    from rich.table import Table

    from rlvid.plugins import resolve
    from rlvid.rewards.critics import BUILTIN

    table = Table(title="built-in scorers", title_justify="left")
    for heading in ("name", "what it scores", "claims to see", "class"):
        table.add_column(heading, overflow="fold")
    for name, target in sorted(BUILTIN.items()):
        scorer = resolve(name, BUILTIN, where="rewards list")
        summary = (scorer.__doc__ or "").strip().split("\n\n")[0]
        claims: tuple[str, ...] = vars(scorer).get("CLAIMS", ())
        table.add_row(name, " ".join(summary.split()), ", ".join(claims), target)
    Console().print(table, highlight=False)
    typer.echo("A scorer of your own is named package.module:Class in rewards.scorers.0.use.")


@rewards_app.command("calibrate", epilog="Example: rlvid rewards calibrate physics --clips 128")
def rewards_calibrate(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SCORER]...", help="Names or package.module:Class; all built-ins."),
    ] = None,
    clips: Annotated[int, typer.Option(min=2, help="True and broken clips, of each.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the clips.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write it here.")] = None,
    server: Annotated[
        str, typer.Option(help="URL of a model server; without, the embedded judge is started.")
    ] = "",
    server_model: Annotated[str, typer.Option(help="What it serves; its first.")] = "",
    unclaimed: Annotated[
        bool, typer.Option("--unclaimed", help="Also the tiny world's breakages not claimed.")
    ] = False,
) -> None:
    """Measure how well scorers tell true clips from broken; exit 1 when a claim fails."""
    from rich.console import Console

    from rlvid.rewards.calibration.calibrate import run_calibration
    from rlvid.rewards.calibration.report import render_all
    from rlvid.rewards.critics import BUILTIN

    report = run_calibration(
        names or sorted(BUILTIN),
        clips,
        seed,
        server=server,
        server_model=server_model,
        unclaimed=unclaimed,
        skip_unready=not names,
    )
    Console().print(render_all(report), highlight=False)
    if json_file is not None:
        json_file.write_text(report.to_json() + "\n")
    if report.failures:
        raise typer.Exit(1)


@rewards_app.command(
    "new", epilog="Example: rlvid rewards new motion_smoothness --folder ~/rewards"
)
def rewards_new(
    name: Annotated[str, typer.Argument(help="Of the package: lower-case, with underscores.")],
    group: Annotated[
        bool, typer.Option("--group", help="It scores the clips of one prompt together.")
    ] = False,
    folder: Annotated[Path, typer.Option(help="Where the package's folder goes.")] = Path(),
) -> None:
    """Write a package with a working reward, its test and a part of a recipe."""
    from rlvid.launch.new_reward import write_new_reward

    files = write_new_reward(name, folder, is_group=group)
    for path in files:
        typer.echo(str(path))
    typer.echo(f"Test it: cd {folder / name} && pytest")


def add_serve_command(app: typer.Typer) -> None:
    """Add `rlvid serve-rewards`."""
    app.command(
        "serve-rewards",
        epilog="Example: rlvid serve-rewards quickstart_cpu --port 8400 --token-file token",
    )(serve_rewards)


def serve_rewards(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8400,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File (mode 600) with the bearer token; made when left out."),
    ] = None,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Of one request.")] = 256,
    max_clips: Annotated[int, typer.Option(min=1, help="That wait; more are told 429.")] = 4096,
    deadline_s: Annotated[float, typer.Option(min=1.0, help="Of one request.")] = 300.0,
    media_folder: Annotated[
        Path | None,
        typer.Option(
            help="Of prompts' pictures while they are scored, seen by every machine of the pool; "
            "this machine's for temporary files when left out."
        ),
    ] = None,
) -> None:
    """Serve the rewards of a recipe over HTTP, for other trainers and other machines."""
    from rlvid.config.loader import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    ask_for_token(loaded)
    show_logs()
    from rlvid.launch.serve_rewards import serve_rewards as serve
    from rlvid.rewards.service.app import ServiceSettings

    settings = ServiceSettings(
        max_body_bytes=max_body_mb * 2**20,
        max_inflight_bytes=4 * max_body_mb * 2**20,
        max_clips=max_clips,
        deadline_s=deadline_s,
        media_folder=media_folder,
    )
    serve(loaded, host=host, port=port, token_file=token_file, settings=settings, say=typer.echo)
