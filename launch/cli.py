"""The command line: `rlvid run | plan | scale | drain | top | evaluate | sample | rewards | ...`.

Nothing heavy is imported before a command needs it, so `rlvid --help` answers at once. What the
user got wrong is one line on standard error and exit status 2; RLVID_TRACEBACK=1 shows where.
"""

from __future__ import annotations

import os
import sys

import typer

from rlvid.launch.cli_control import add_control_commands
from rlvid.launch.cli_doctor import add_doctor_command
from rlvid.launch.cli_enhance import add_enhance_command
from rlvid.launch.cli_gsb import gsb_app
from rlvid.launch.cli_optimise import add_optimise_command
from rlvid.launch.cli_plan import add_plan_command
from rlvid.launch.cli_policies import add_policy_commands
from rlvid.launch.cli_rewards import add_serve_command, rewards_app
from rlvid.launch.cli_run import add_run_command
from rlvid.launch.cli_sample import add_sample_command
from rlvid.launch.cli_slim_decoder import add_slim_decoder_command
from rlvid.launch.cli_vbench2 import vbench2_app

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
add_control_commands(app)
add_policy_commands(app)
add_sample_command(app)
add_enhance_command(app)
add_optimise_command(app)
add_slim_decoder_command(app)
add_doctor_command(app)
add_run_command(app)
add_plan_command(app)
add_serve_command(app)

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
