"""The commands `rlvid gsb ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

gsb_app = typer.Typer(
    no_args_is_help=True, help="Have people compare two policies side by side, blind."
)
FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="Of the comparison.")]


@gsb_app.command(
    "make",
    epilog="Examples: rlvid gsb make gsb/first --run runs/first | rlvid gsb make gsb/two "
    "--clips-a base --clips-b tuned --prompts prompts.jsonl",
)
def gsb_make(
    folder: FolderArgument,
    run: Annotated[
        Path | None, typer.Option(help="A finished run: its base against its trained policy.")
    ] = None,
    clips_a: Annotated[Path | None, typer.Option(help="Folder of policy A's .mp4 files.")] = None,
    clips_b: Annotated[Path | None, typer.Option(help="Folder of policy B's, same names.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help='.jsonl of {"file", "text"}, or .txt in the order of the names.'),
    ] = None,
    names: Annotated[
        tuple[str, str] | None, typer.Option(help="Of policy A and policy B, for the result.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "Which video is better?",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the sides; drawn when left out.")
    ] = None,
) -> None:
    """Write a page with pairs of clips, sides mixed, and the key that tells them apart."""
    from rlvid.launch import gsb_clips
    from rlvid.launch.gsb import KEY, SHEET, make_sheet

    folders = (clips_a, clips_b, prompts)
    if run is not None and folders == (None, None, None):
        pairs = gsb_clips.pairs_of_run(run)
        policies = names or (gsb_clips.BASE, gsb_clips.AFTER)
    elif run is None and clips_a is not None and clips_b is not None and prompts is not None:
        pairs = gsb_clips.pairs_of_folders(clips_a, clips_b, prompts)
        policies = names or (clips_a.name, clips_b.name)
    else:
        raise ValueError(
            "gsb make: expected either --run, or all of --clips-a, --clips-b and --prompts. "
            "See rlvid gsb make --help."
        )
    settings = make_sheet(folder, pairs, policies=policies, seed=seed, title=title)
    size_mb = (folder / SHEET).stat().st_size / 2**20
    typer.echo(f"{folder / SHEET}: {len(settings.pair_ids)} pairs, {size_mb:.1f} MB")
    typer.echo(f"{folder / KEY}: which side is which policy; keep it from those who vote")
    typer.echo(f"collect votes: rlvid gsb serve {folder}   or mail the page")


@gsb_app.command("serve", epilog="Example: rlvid gsb serve gsb/first --port 8500")
def gsb_serve(
    folder: FolderArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8500,
) -> None:
    """Serve the page on this machine and keep the votes."""
    from rlvid.launch.gsb_server import serve

    serve(folder, port=port, say=typer.echo)


@gsb_app.command(
    "tally", epilog="Example: rlvid gsb tally gsb/first --votes anna.jsonl --votes ben.jsonl"
)
def gsb_tally(
    folder: FolderArgument,
    votes: Annotated[
        list[Path] | None,
        typer.Option(help="File of votes; every votes*.jsonl of the folder when left out."),
    ] = None,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of intervals.")] = 0.95,
) -> None:
    """Count the votes: Good / Same / Bad per axis, with intervals; write tally.json."""
    from rich.console import Console

    from rlvid.launch.gsb_tally import TALLY, render, tally_sheet

    result = tally_sheet(folder, votes or (), confidence=confidence)
    Console().print(render(result), highlight=False)
    for line in result.torn_lines:
        typer.echo(f"not counted, cut short by a crash: {line[:100]!r}", err=True)
    typer.echo(f"{folder / TALLY}")


@gsb_app.command(
    "ask",
    epilog="Examples: rlvid gsb ask gsb/first | rlvid gsb ask gsb/first --server "
    "http://127.0.0.1:8000 --ask TA=adherence --ask overall=unified_reward",
)
def gsb_ask(
    folder: FolderArgument,
    server: Annotated[
        str, typer.Option(help="URL of a model server; without, the embedded judge is started.")
    ] = "",
    server_model: Annotated[str, typer.Option(help="What it serves; its first.")] = "",
    ask: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=PROMPTS", help="Prompt file with a `pair` for an axis."),
    ] = None,
) -> None:
    """Have a vision-language model vote, each pair in both orders; kept apart from people."""
    from contextlib import nullcontext

    from rlvid.launch.gsb_voter import vote_by_model
    from rlvid.rewards.judges.connection import AskSettings
    from rlvid.rewards.vllm.standalone import endpoint_of, own_server

    chosen = [one.partition("=") for one in ask or ["TA=adherence" if server else "TA=tiny_world"]]
    asks = {
        axis: AskSettings(prompts=prompts, layout="images" if server else "tiny_judge")
        for axis, _, prompts in chosen
    }
    opened = nullcontext(endpoint_of(server, model=server_model)) if server else own_server()
    with opened as endpoint:
        name = endpoint.model if server else "tiny_judge"
        found = vote_by_model(folder, endpoint, name=name, asks=asks)
    typer.echo(f"{found.path}: {found.num_votes} votes, {found.num_missing} without an answer")
