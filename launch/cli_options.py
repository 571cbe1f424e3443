"""Arguments and habits that the commands of the command line share."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that ships."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings to change, e.g. rollout.group_size=4 seed=1."
    ),
]
RunFolderOption = Annotated[
    Path | None,
    typer.Option("--run-folder", help="Where results go; runs/<name> when left out."),
]


def default_folder(name: str, *, resume: bool) -> Path:
    """Return runs/<name>, or the first of runs/<name>-2, -3, ... that is not in use.

    With `resume` it is the last one that is in use.
    """
    folder, number = Path("runs") / name, 1
    latest = folder
    while folder.exists():
        latest, number = folder, number + 1
        folder = Path("runs") / f"{name}-{number}"
    return latest if resume else folder


def show_logs() -> None:
    """Show what rlvid itself logs, and only warnings of others."""
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("rlvid").setLevel(logging.INFO)
