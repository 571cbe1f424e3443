"""The commands `rlvid vbench2 ...`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from contextlib import ExitStack

    from rlvid.rewards.base import Endpoint

vbench2_app = typer.Typer(
    no_args_is_help=True,
    help="VBench-2.0 on a folder of videos: by judges of yours, or by the official package.",
)
VideosArgument = Annotated[
    Path,
    typer.Argument(help="Folder of PROMPT-N.mp4, or with a folder of them for each dimension."),
]
ItemsOption = Annotated[
    Path, typer.Option("--items", help="The benchmark's VBench2_full_info.json.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
DimensionOption = Annotated[
    list[str] | None, typer.Option("--dimension", help="One of the 18; all when left out.")
]


@vbench2_app.command(
    "judge",
    epilog="Examples: rlvid vbench2 judge videos --items VBench2_full_info.json --out vbench2 "
    "--seer http://host:8000 --reader http://other:8000 | the same with --dimension Mechanics "
    "--measurements measured.json --specialist Camera_Motion=camera_path",
)
def vbench2_judge(
    videos: VideosArgument,
    items: ItemsOption,
    out: OutOption,
    seer: Annotated[
        list[str] | None,
        typer.Option(help="URL of a model that sees; several are replicas. Without, the embedded."),
    ] = None,
    seer_model: Annotated[str, typer.Option(help="What it serves; its first.")] = "",
    seer_key_env: Annotated[str, typer.Option(help="Variable with its key.")] = "",
    reader: Annotated[
        list[str] | None, typer.Option(help="URL of a model that reads; the seer when left out.")
    ] = None,
    reader_model: Annotated[str, typer.Option(help="What it serves; its first.")] = "",
    reader_key_env: Annotated[str, typer.Option(help="Variable with its key.")] = "",
    dimension: DimensionOption = None,
    measurements: Annotated[
        Path | None, typer.Option(help="JSON of specialists: {dimension: {video: fields}}.")
    ] = None,
    specialist: Annotated[
        list[str] | None,
        typer.Option(metavar="DIMENSION=NAME", help="Who measures it: package.module:Class."),
    ] = None,
    layout: Annotated[
        str, typer.Option(help="How frames are sent: images, sheet, mp4 or jpeg.")
    ] = "images",
    num_frames: Annotated[int, typer.Option(min=2, help="Shown of a video.")] = 16,
    height: Annotated[int | None, typer.Option(min=16, help="Frames are resized to it.")] = None,
    width: Annotated[int | None, typer.Option(min=16, help="Frames are resized to it.")] = None,
    max_tokens: Annotated[int, typer.Option(min=16, help="Of a description.")] = 1024,
    parallel: Annotated[int, typer.Option(min=1, help="Videos judged at a time.")] = 8,
    deadline_s: Annotated[float, typer.Option(min=1.0, help="Of one question.")] = 240.0,
    check_sight: Annotated[
        bool, typer.Option(help="Compare the server's token counts with what was sent.")
    ] = True,
) -> None:
    """Have served models judge the videos; goes on where it was stopped.

    Without a specialist, Diversity, Camera_Motion, Human_Anatomy, Human_Identity and
    Multi-View_Consistency are not judged: they have no value, and the total leaves them out.
    """
    from contextlib import ExitStack

    from rlvid.launch.vbench2.judge import JudgeSettings, judge_folder
    from rlvid.rewards.judges.connection import AskSettings

    settings = JudgeSettings(
        dimensions=dimension or (),
        measurements=measurements,
        specialists=dict(_specialist(text) for text in specialist or ()),
        ask=AskSettings(
            layout=_layout(layout) if seer else "tiny_judge",
            num_frames=num_frames,
            height=height,
            width=width,
            concurrency=parallel,
            deadline_s=deadline_s,
            timeout_s=deadline_s / 2,
            check_sight=check_sight,
        ),
        max_tokens=max_tokens,
    )
    with ExitStack() as stack:
        tree = judge_folder(
            videos,
            items,
            out,
            open_judges=lambda: (
                _endpoints(stack, seer, seer_model, seer_key_env, starts=True),
                _endpoints(stack, reader, reader_model, reader_key_env, starts=False),
            ),
            settings=settings,
            say=typer.echo,
        )
    _show(tree, out)
    if tree["strangers"]:
        some = ", ".join(map(repr, tree["strangers"][:3]))
        typer.echo(f"{len(tree['strangers'])} files of no prompt asked for, e.g. {some}", err=True)


@vbench2_app.command(
    "official", epilog="Example: rlvid vbench2 official videos --items FILE --out vbench2"
)
def vbench2_official(
    videos: VideosArgument,
    items: ItemsOption,
    out: OutOption,
    dimension: DimensionOption = None,
    device: Annotated[str, typer.Option(help="Where its models run.")] = "cuda",
    local: Annotated[
        bool, typer.Option("--local", help="Its models were downloaded before.")
    ] = False,
) -> None:
    """Have the official package `vbench2` judge them, where it is installed."""
    from rlvid.launch.vbench2 import table
    from rlvid.launch.vbench2.official import PACKAGE, read_results, run_official

    written = run_official(
        videos,
        items,
        out,
        dimensions=dimension or (),
        device=device,
        local=local,
        say=typer.echo,
    )
    tree = table.result(read_results(written), source={"back_end": PACKAGE})
    table.write(out / table.RESULT, tree)
    _show(tree, out)


@vbench2_app.command(
    "read", epilog="Example: rlvid vbench2 read evaluation_results/*/*/*_eval_results.json"
)
def vbench2_read(
    files: Annotated[
        list[Path], typer.Argument(help="The official package's *_eval_results.json.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the table as JSON.")] = None,
) -> None:
    """Show results of the official package as dimensions, groups and total."""
    from rlvid.launch.vbench2 import table
    from rlvid.launch.vbench2.official import PACKAGE, read_results

    source = {"back_end": PACKAGE, "files": [str(path) for path in files]}
    tree = table.result(read_results(files), source=source)
    if out is not None:
        table.write(out / table.RESULT, tree)
    _show(tree, out)


def _endpoints(
    stack: ExitStack, urls: list[str] | None, model: str, key_env: str, *, starts: bool
) -> list[Endpoint]:
    """Return the replicas of the URLs; without any, the embedded judge where `starts`."""
    from rlvid.rewards.vllm.standalone import endpoint_of, own_server

    if urls:
        return [endpoint_of(url, model=model, api_key_env=key_env) for url in urls]
    return [stack.enter_context(own_server())] if starts else []


def _specialist(text: str) -> tuple[str, str]:
    dimension, equals, name = text.partition("=")
    if not equals or not name:
        raise ValueError(f"vbench2 judge: --specialist: expected DIMENSION=NAME, got {text!r}")
    return dimension, name


def _layout(text: str) -> Any:
    if text not in ("images", "sheet", "mp4", "jpeg"):
        raise ValueError(
            f"vbench2 judge: --layout: expected images, sheet, mp4 or jpeg, got {text!r}"
        )
    return text


def _show(tree: dict[str, Any], out: Path | None) -> None:
    from rich.console import Console

    from rlvid.launch.vbench2 import table

    Console().print(table.render(tree), highlight=False)
    if tree["missing"]:
        typer.echo(f"no value, and in no mean: {', '.join(tree['missing'])}")
    if tree["num_unjudged"]:
        typer.echo(f"{tree['num_unjudged']} videos unjudged, see {table.RESULT}", err=True)
    if out is not None:
        typer.echo(f"{out / table.RESULT}")
