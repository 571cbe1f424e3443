"""The commands that talk to a live run: `rlvid scale`, `rlvid drain` and `rlvid top`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from rlvid.launch.control.commands import Command

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="The run's folder, e.g. runs/quickstart_cpu.")
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=1.0, help="Seconds to wait for the driver's answer.")
]


def scale(
    run: RunArgument,
    rollouts: Annotated[
        int | None, typer.Option("--rollouts", min=1, help="Rollout actors wanted.")
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option("--scorer", metavar="NAME=M", help="Replicas of a scorer; may be repeated."),
    ] = None,
    timeout_s: Timeout = 60.0,
) -> None:
    """Change the number of rollout actors or scorer replicas of a live run."""
    from rlvid.launch.control.commands import ScaleCommand

    scorers = replicas_of(scorer or ())
    if rollouts is None and not scorers:
        raise ValueError("scale: nothing is asked for; give --rollouts N or --scorer NAME=M")
    order(run, ScaleCommand(rollouts=rollouts, scorers=scorers), timeout_s)


def drain(run: RunArgument, timeout_s: Timeout = 60.0) -> None:
    """Have a live run finish what it has begun, write a checkpoint and stop."""
    from rlvid.launch.control.commands import DrainCommand

    order(run, DrainCommand(), timeout_s)


def top(
    run: RunArgument,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    interval_s: Annotated[
        float, typer.Option("--interval", min=0.2, help="Seconds between frames.")
    ] = 1.0,
) -> None:
    """Watch a live run: steps, groups, actors, scorers, learner and where the time goes."""
    from rich.console import Console

    from rlvid.launch.control.status import read_status
    from rlvid.launch.control.top_view import render

    console = Console()
    status = read_status(run)
    if once:
        console.print(
            render(status, time.time() - status.time_s, width=console.width), highlight=False
        )
        return
    watch(run, console, interval_s)


def watch(run: Path, console: Console, interval_s: float) -> None:
    """Show frames until the run is over or the user interrupts."""
    from rich.live import Live

    from rlvid.launch.control.status import OVER, read_status
    from rlvid.launch.control.top_view import render

    status = read_status(run)
    age_s, seen_at = time.time() - status.time_s, time.monotonic()
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                fresh = read_status(run)
                if fresh.time_s != status.time_s:  # clocks of two hosts may differ: count from here
                    status, age_s, seen_at = fresh, 0.0, time.monotonic()
                shown_age_s = age_s + time.monotonic() - seen_at
                frame = render(status, shown_age_s, width=console.width, height=console.height)
                live.update(frame, refresh=True)
                if status.state in OVER:
                    break
                time.sleep(interval_s)
    except KeyboardInterrupt:
        pass
    last_age_s = age_s + time.monotonic() - seen_at
    console.print(render(status, last_age_s, width=console.width), highlight=False)


def order(run: Path, command: Command, timeout_s: float) -> None:
    """Send a command and say what the driver answered.

    Raises:
        ValueError: there is no live driver, or it refused.
    """
    from rlvid.launch.control.channel import send

    answer = send(run, command, timeout_s)
    if not answer.ok:
        raise ValueError(f"{command.kind}: the run refused: {answer.message}")
    typer.echo(answer.message)


def replicas_of(texts: list[str] | tuple[()]) -> dict[str, int]:
    """Return scorer to replicas of texts like "physics=2".

    Raises:
        ValueError: a text is none of these, or names a scorer twice.
    """
    found: dict[str, int] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not (name and equals and number.isascii() and number.isdigit() and int(number) >= 1):
            raise ValueError(
                f"--scorer: expected NAME=M with M of at least 1, e.g. physics=2, got {text!r}"
            )
        if name in found:
            raise ValueError(f"--scorer: {name!r} is given twice; give it once")
        found[name] = int(number)
    return found


def add_control_commands(app: typer.Typer) -> None:
    """Add `rlvid scale`, `drain` and `top`."""
    app.command(epilog="Example: rlvid scale runs/quickstart_cpu --rollouts 6 --scorer physics=2")(
        scale
    )
    app.command(epilog="Example: rlvid drain runs/quickstart_cpu")(drain)
    app.command(epilog="Example: rlvid top runs/quickstart_cpu --once")(top)
