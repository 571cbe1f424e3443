"""The command line: `rlvid run | plan | scale | drain | top | evaluate | sample | rewards | ...`.

Nothing heavy is imported before a command needs it, so `rlvid --help` answers at once. What the
user got wrong is one line on standard error and exit status 2; RLVID_TRACEBACK=1 shows where.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlvid.launch.cli_gsb import gsb_app
from rlvid.launch.cli_rewards import rewards_app
from rlvid.launch.cli_run import add_commands

if TYPE_CHECKING:
    from rlvid.config import Recipe
    from rlvid.models.policy import Policy

app = typer.Typer(
    name="rlvid",
    help="Post-train video diffusion models with reinforcement learning.",
    epilog="Start with: rlvid run quickstart_cpu (a tiny model, a laptop, a few minutes).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(rewards_app, name="rewards")
app.add_typer(gsb_app, name="gsb")
add_commands(app)

DEFAULT_RECIPE = "quickstart_cpu"
PREEMPTED_STATUS = 75
"""`preemption.EXIT_STATUS`, which is not imported here."""
ROLE_ERRORS = (
    ("rlvid.rewards.base", "RewardError"),
    ("rlvid.algorithms.score_table", "MissingScoresError"),
    ("rlvid.actors.pool", "RolloutLostError"),
    ("rlvid.learners.group", "LearnerLostError"),
    ("rlvid.durable", "DiskFullError"),
    ("rlvid.launch.group_keeper", "KeeperLostError"),
)
"""Module and name of errors whose message says all there is; named, so that none is imported."""

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


@app.command(
    epilog="Examples: rlvid run quickstart_cpu seed=1 | "
    "rlvid run my.yaml --run-folder runs/first | rlvid run my.yaml --run-folder runs/first "
    "--resume | rlvid run my.yaml --run-folder runs/first --resume-if-exists --restarts 5"
)
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
) -> None:
    """Run the phases of a recipe and write a report.

    Exit status: 0 done; 2 an error of the user's; 75 asked to make room, run it again to go on.
    """
    from rlvid.config.loader import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    if resume_if_exists and (run_folder is None or resume):
        raise ValueError(
            "run: --resume-if-exists looks into the --run-folder that is given with it: expected "
            "one, and no --resume. Name the folder, the same for every attempt."
        )
    folder = run_folder or default_folder(loaded.name, resume=resume)
    if restarts:
        from rlvid.launch.restarts import driver_command, run_with_restarts

        started = resume or (resume_if_exists and holds_run(folder))
        again = driver_command(recipe, overrides or (), folder, "--resume-if-exists")
        first = driver_command(recipe, overrides or (), folder, *["--resume"] * started)
        raise typer.Exit(run_with_restarts(first, again, restarts=restarts, stall_s=stall_s))
    resume = resume or (resume_if_exists and holds_run(folder))
    show_logs()
    from rlvid.launch.planner import check_machine

    check_machine(loaded)
    if dry_run:
        rehearse(loaded, folder, resume=resume)
        return
    from rlvid.launch.run import run_recipe

    typer.echo(f"run folder: {folder}", err=True)
    typer.echo(f"report: {run_recipe(loaded, folder, resume=resume)}")


@app.command(
    epilog="Examples: rlvid plan quickstart_cpu rollout.num_actors=4 | "
    "rlvid plan my.yaml --simulate --costs runs/first --actors 1,4,16 --staleness 0,1"
)
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
) -> None:
    """Show what a recipe needs: processes, CPUs, GPUs, memory, forwards a step; or its times."""
    from rlvid.config.loader import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    options = (actors, staleness, costs, failures, steps, as_json or None)
    if simulate:
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
    from rich.console import Console

    from rlvid.launch import planner

    Console().print(planner.render(planner.plan(loaded)), highlight=False)
    planner.check_machine(loaded)


@app.command(
    epilog="Examples: rlvid evaluate runs/quickstart_cpu | "
    "rlvid evaluate path/to/pipeline --recipe quickstart_cpu --base tiny"
)
def evaluate(
    what: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="A run folder, or a pipeline folder.")
    ],
    overrides: Overrides = None,
    recipe: Annotated[
        str | None,
        typer.Option(help=f"Recipe; the run's own, or {DEFAULT_RECIPE} for a model."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Pipeline folder to compare with; the run's own, or the recipe's model."),
    ] = None,
    run_folder: RunFolderOption = None,
) -> None:
    """Compare a policy with its base on held-out prompts, with intervals."""
    from rlvid.config.loader import load_recipe

    is_run = (Path(what) / "recipe.yaml").is_file()
    chosen = recipe or (str(Path(what) / "recipe.yaml") if is_run else DEFAULT_RECIPE)
    loaded = load_recipe(chosen, overrides or ())
    show_logs()
    from rlvid.launch.phases.base import Artifacts
    from rlvid.launch.run import artifacts_of, evaluate_run
    from rlvid.models.policy import Policy

    if is_run:
        artifacts = artifacts_of(Path(what))
    else:
        start = Policy(model_path=loaded.model.path)
        artifacts = Artifacts(base_policy=start, policy=policy_at(what))
    if base:
        artifacts = replace(artifacts, base_policy=Policy(model_path=base))
    folder = run_folder or default_folder(f"{loaded.name}-evaluate", resume=False)
    typer.echo(f"report: {evaluate_run(loaded, artifacts, folder)}")


@app.command(
    epilog='Examples: rlvid sample "a red ball falls" | '
    'rlvid sample "a red ball falls" --run runs/quickstart_cpu --seed 3 --out after.mp4'
)
def sample(
    prompt: Annotated[str, typer.Argument(help="What the clip should show.")],
    model: Annotated[
        str | None, typer.Option(help="Pipeline folder; the tiny model when left out.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder: its newest policy and its settings.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("sample.mp4"),
    seed: Annotated[int, typer.Option(min=0, help="Of the initial noise.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps; the recipe's when left out.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=1.0, help="Guidance scale; the recipe's when left out.")
    ] = None,
) -> None:
    """Sample one clip with the deterministic sampler and write it as mp4."""
    if model is not None and run is not None:
        raise ValueError("sample: --model and --run name two policies; give one of them")
    if not prompt.strip():
        raise ValueError("sample: the prompt is empty; say what the clip should show")
    recipe = recipe_for_sample(run, model)
    from rlvid.data.video_files import write_mp4
    from rlvid.launch.sample import sample_clip

    policy = policy_at(str(run or model or recipe.model.path))
    clip = sample_clip(
        prompt,
        policy,
        recipe.model,
        seed=seed,
        num_denoising_steps=steps or recipe.evaluate.num_denoising_steps,
        shift=recipe.rollout.shift,
        guidance_scale=guidance or recipe.evaluate.guidance_scale or recipe.rollout.guidance_scale,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(out, clip, recipe.model.fps)
    frames, _, height, width = clip.shape
    typer.echo(f"{out}: {frames} frames of {width}x{height} at {recipe.model.fps} fps")


@app.command(
    "serve-rewards",
    epilog="Example: rlvid serve-rewards quickstart_cpu --port 8400 --token-file token",
)
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
) -> None:
    """Serve the rewards of a recipe over HTTP, for other trainers and other machines."""
    from rlvid.config.loader import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    show_logs()
    from rlvid.launch.serve_rewards import serve_rewards as serve
    from rlvid.rewards.service.app import ServiceSettings

    settings = ServiceSettings(
        max_body_bytes=max_body_mb * 2**20,
        max_inflight_bytes=4 * max_body_mb * 2**20,
        max_clips=max_clips,
        deadline_s=deadline_s,
    )
    serve(loaded, host=host, port=port, token_file=token_file, settings=settings, say=typer.echo)


@app.command()
def doctor() -> None:
    """Check this machine: packages, Ray, DeepSpeed, video, model, cores; exit 1 if broken."""
    from rich.console import Console

    from rlvid.launch.doctor import examine, render

    findings = list(examine())
    Console().print(render(findings), highlight=False)
    broken = [finding.check for finding in findings if finding.state == "broken"]
    if broken:
        typer.echo(f"error: broken: {', '.join(broken)}", err=True)
        raise typer.Exit(1)


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


def recipe_for_sample(run: Path | None, model: str | None) -> Recipe:
    """Return the settings to sample with: the run's own, else the defaults."""
    from rlvid.config import ModelConfig, Recipe
    from rlvid.config.loader import load_recipe

    if run is not None:
        return load_recipe(run / "recipe.yaml")
    return Recipe(name="sample", model=ModelConfig(path=model) if model else ModelConfig())


def policy_at(what: str) -> Policy:
    """Return the newest policy of a run folder, or the policy of a pipeline folder."""
    from rlvid.launch.run import artifacts_of
    from rlvid.models.policy import Policy

    if (Path(what) / "recipe.yaml").is_file():
        return artifacts_of(Path(what)).policy
    return Policy(model_path=what)


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


def holds_run(folder: Path) -> bool:
    """Return whether there is a run in the folder that can be resumed."""
    return (folder / "recipe.yaml").is_file()


def show_logs() -> None:
    """Show what rlvid itself logs, and only warnings of others."""
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("rlvid").setLevel(logging.INFO)


def user_message(error: Exception) -> str | None:
    """Return what to tell the user about an error of theirs; None when it is a fault of ours.

    Ray wraps what a worker raised; the wrapped error is the one that has the message.
    """
    ray = sys.modules.get("ray")
    if ray is not None and isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    kinds: list[type[Exception]] = [ValueError, PermissionError]
    kinds += [
        getattr(sys.modules[module], name) for module, name in ROLE_ERRORS if module in sys.modules
    ]
    if isinstance(error, tuple(kinds)):
        return str(error)
    durable = sys.modules.get("rlvid.durable")
    if durable is not None and durable.is_disk_full(error):
        return (
            f"a disk is full: {error}. Make room on the run folder's disk and in the temporary "
            "folder, then resume the run; what was finished is intact"
        )
    return None


def is_preempted(error: Exception) -> bool:
    """Return whether the run was asked to make room; launchers then queue it again."""
    module = sys.modules.get("rlvid.launch.preemption")
    return module is not None and isinstance(error, module.Preempted)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except Exception as error:
        if is_preempted(error):
            sys.stderr.write(f"preempted: {error}; start it again with --resume-if-exists\n")
            sys.exit(PREEMPTED_STATUS)
        message = user_message(error)
        if message is None or os.environ.get("RLVID_TRACEBACK"):
            raise
        for line in message.splitlines():
            sys.stderr.write(f"error: {line}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
