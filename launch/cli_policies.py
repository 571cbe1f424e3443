"""The commands that measure finished policies: `rlvid evaluate` and `rlvid compare`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlvid.launch.cli_options import Overrides, RunFolderOption, default_folder, show_logs
from rlvid.launch.own_token import ask_for_token

if TYPE_CHECKING:
    from rlvid.config import Recipe
    from rlvid.models.policy import Policy

DEFAULT_RECIPE = "quickstart_cpu"
RecipeOption = Annotated[
    str | None, typer.Option(help=f"Recipe; the run's own, or {DEFAULT_RECIPE} for a model.")
]


def is_run(what: str) -> bool:
    """Return whether a command was given the folder of a run."""
    return (Path(what) / "recipe.yaml").is_file()


def recipe_for(what: str, recipe: str | None, overrides: list[str] | None) -> Recipe:
    """Load the recipe that was named, else that of the run, else the default one."""
    from rlvid.config.loader import load_recipe

    own = str(Path(what) / "recipe.yaml") if is_run(what) else DEFAULT_RECIPE
    return load_recipe(recipe or own, overrides or ())


def evaluate(
    what: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="A run folder, or a pipeline folder.")
    ],
    overrides: Overrides = None,
    recipe: RecipeOption = None,
    base: Annotated[
        str | None,
        typer.Option(help="Pipeline folder to compare with; the run's own, or the recipe's model."),
    ] = None,
    run_folder: RunFolderOption = None,
) -> None:
    """Compare a policy with its base on held-out prompts, with intervals."""
    loaded = recipe_for(what, recipe, overrides)
    ask_for_token(loaded)
    show_logs()
    from rlvid.launch.phases.base import Artifacts
    from rlvid.launch.run import artifacts_of, evaluate_run
    from rlvid.models.policy import Policy

    if is_run(what):
        artifacts = artifacts_of(Path(what))
    else:
        start = Policy(model_path=loaded.model.path)
        artifacts = Artifacts(base_policy=start, policy=policy_at(what))
    if base:
        artifacts = replace(artifacts, base_policy=Policy(model_path=base))
    folder = run_folder or default_folder(f"{loaded.name}-evaluate", resume=False)
    typer.echo(f"report: {evaluate_run(loaded, artifacts, folder)}")


def compare(
    first: Annotated[
        str, typer.Argument(metavar="A", help="A run folder, or a pipeline folder; or tiny.")
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    overrides: Overrides = None,
    recipe: Annotated[
        str | None,
        typer.Option(help=f"Recipe; that of B, of A, or {DEFAULT_RECIPE} for two models."),
    ] = None,
    run_folder: RunFolderOption = None,
) -> None:
    """Compare two policies on held-out prompts from the same noise: B less A, with intervals."""
    from rlvid.config.loader import load_recipe

    runs = [what for what in (second, first) if is_run(what)]
    chosen = recipe or (str(Path(runs[0]) / "recipe.yaml") if runs else DEFAULT_RECIPE)
    loaded = load_recipe(chosen, overrides or ())
    ask_for_token(loaded)
    show_logs()
    from rlvid.launch.phases.base import Artifacts
    from rlvid.launch.run import evaluate_run

    artifacts = Artifacts(base_policy=policy_at(first), policy=policy_at(second))
    folder = run_folder or default_folder(f"{loaded.name}-compare", resume=False)
    typer.echo(f"report: {evaluate_run(loaded, artifacts, folder)}")


def add_policy_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command(
        epilog="Examples: rlvid evaluate runs/quickstart_cpu | "
        "rlvid evaluate path/to/pipeline --recipe quickstart_cpu --base tiny"
    )(evaluate)
    app.command(epilog="Example: rlvid compare runs/first runs/second evaluate.num_prompts=64")(
        compare
    )


def policy_at(what: str) -> Policy:
    """Return the newest policy of a run folder, or the policy of a pipeline folder."""
    from rlvid.launch.run import artifacts_of
    from rlvid.models.policy import Policy

    if is_run(what):
        return artifacts_of(Path(what)).policy
    return Policy(model_path=what)
