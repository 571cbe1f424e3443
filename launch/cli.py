"""The command line: `rlvid run | plan | scale | drain | top | evaluate | sample | rewards | ...`.

Nothing heavy is imported before a command needs it, so `rlvid --help` answers at once. What the
user got wrong is one line on standard error and exit status 2; RLVID_TRACEBACK=1 shows where.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlvid.launch.cli_doctor import add_doctor_command
from rlvid.launch.cli_enhance import add_enhance_command
from rlvid.launch.cli_gsb import gsb_app
from rlvid.launch.cli_optimise import add_optimise_command
from rlvid.launch.cli_options import (
    Overrides,
    RecipeArgument,
    RunFolderOption,
    default_folder,
    show_logs,
)
from rlvid.launch.cli_policies import add_policy_commands
from rlvid.launch.cli_rewards import rewards_app
from rlvid.launch.cli_run import add_commands
from rlvid.launch.cli_sample import add_sample_command
from rlvid.launch.cli_vbench2 import vbench2_app

if TYPE_CHECKING:
    from rlvid.config import Recipe

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
app.add_typer(vbench2_app, name="vbench2")
add_commands(app)
add_policy_commands(app)
add_sample_command(app)
add_enhance_command(app)
add_optimise_command(app)
add_doctor_command(app)

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
        flags = [*["--resume"] * started, *["--doctor"] * doctor]
        first = driver_command(recipe, overrides or (), folder, *flags)
        raise typer.Exit(run_with_restarts(first, again, restarts=restarts, stall_s=stall_s))
    resume = resume or (resume_if_exists and holds_run(folder))
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


@app.command(
    epilog="Examples: rlvid plan quickstart_cpu rollout.num_actors=4 | "
    "rlvid plan my.yaml --assume sampling_mfu=0.5 --assume 'gpu=NVIDIA H200' | "
    "rlvid plan wan2.1_14b_lora --cluster 4x8xH200 --price 3.5 | "
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
    assume: Annotated[
        list[str] | None,
        typer.Option(
            "--assume",
            metavar="NAME=VALUE",
            help="Of the cost estimate, e.g. sampling_mfu=0.5; may be repeated.",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="NODESxGPUSxKIND",
            help="Split these GPUs best between the roles of the RL phase, e.g. 4x8xH100.",
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0.0, help="With --cluster: of one GPU for an hour.")
    ] = None,
) -> None:
    """Show what a recipe needs: processes, GPUs, memory, and each phase's cost; or its times."""
    from rlvid.config.loader import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    options = (actors, staleness, costs, failures, steps, as_json or None)
    if simulate:
        if assume or cluster or price is not None:
            raise ValueError(
                "plan: --assume, --cluster and --price belong to the estimate; leave out --simulate"
            )
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
    if price is not None and cluster is None:
        raise ValueError("plan: --price is of a GPU of --cluster; add it, e.g. --cluster 4x8xH100")
    from rlvid.launch.cli_plan import print_plan

    print_plan(loaded, assume or (), cluster=cluster, price=price)


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
