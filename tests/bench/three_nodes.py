"""Runs the shortened quickstart on three nodes by ssh_hosts.sh and kills one; prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.three_nodes > tests/bench/results/cpu_three_nodes.json

The nodes are namespaces of this machine (`tests/system/local_hosts.py`): each with its own address,
processes and shared memory, and no file of another's but the run folder. ssh is replaced by a
command that enters them; all else is the launcher's: wheel, token, Ray, doctor, driver, clearing.
A worker that holds a rollout actor is killed once the first step is done; the run goes on with the
other actor, Ray finds the loss, and a new actor starts on the nodes that are left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlvid.launch.control.status import RunStatus, read_status
from tests.bench.chaos import account_of
from tests.bench.timing import environment
from tests.system.local_hosts import NODE_TMP, LocalHosts, why_not

ROOT = Path(__file__).resolve().parents[2]
SHORT = (
    "grpo.num_steps=4",
    "grpo.evaluate_every=0",
    "rollout.group_size=4",
    "rollout.groups_per_step=4",
    "evaluate.num_prompts=2",
    "evaluate.seeds_per_prompt=1",
    "evaluate.num_bootstrap=100",
    "evaluate.num_clips=1",
)
LONGER = (*SHORT, "grpo.num_steps=40")
"""Ray takes half a minute to give a node up."""
RAY_START = "--num-cpus=2 --object-store-memory=300000000"
"""So small that no node holds all four roles."""
KILL_AFTER_STEP = 1
WAIT_S = 1200.0


def main() -> None:
    reason = why_not()
    if reason:
        raise SystemExit(f"three_nodes: {reason}")
    with tempfile.TemporaryDirectory(prefix="three_nodes_") as name:
        result = lose_a_node(Path(name))
    print(json.dumps({"environment": environment(torch.device("cpu")), **result}, indent=1))


def lose_a_node(folder: Path) -> dict[str, Any]:
    """Return what became of a run on three nodes of which one was killed."""
    run = folder / "run"
    with LocalHosts(folder / "hosts", 3) as hosts:
        began = time.monotonic()
        with launch(hosts, "quickstart_cpu", run, *LONGER) as launcher:
            try:
                wait_for(launcher, lambda: is_at(run, KILL_AFTER_STEP))
                killed_at, started_s = read_status(run).step, time.monotonic() - began
                victim = worker_with_rollouts(hosts)
                hosts.kill(victim)
                killed = time.monotonic()
                wait_for(launcher, lambda: is_at(run, killed_at + 1))
                next_step_s = time.monotonic() - killed
                wait_for(launcher, lambda: works_again(run))
                replaced_s, replaced_at = time.monotonic() - killed, read_status(run).step
                status = launcher.wait(timeout=WAIT_S)
            finally:
                launcher.terminate()
        left = {
            name: hosts.processes(name) + hosts.own_files(name)
            for name in hosts.names
            if name != victim
        }
    return {
        "exit_status": status,
        "killed": victim,
        "killed_at_step": killed_at,
        "seconds_to_that_step": round(started_s, 1),
        "seconds_from_the_kill_to_the_next_step": round(next_step_s, 1),
        "seconds_from_the_kill_to_work_of_a_new_actor": round(replaced_s, 1),
        "step_then": replaced_at,
        "seconds_in_all": round(time.monotonic() - began, 1),
        "ledger": account_of(run),
        "left_on_the_nodes": left,
    }


def launch(hosts: LocalHosts, recipe: str, run: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """Start the launcher; it says what it does on standard error."""
    return subprocess.Popen(
        [
            *("bash", str(ROOT / "launch/ssh_hosts.sh"), str(hosts.hostfile), recipe, *overrides),
            *("--run-folder", str(run)),
        ],
        env={
            **os.environ,
            "RLVID_SSH": str(hosts.ssh),
            "RLVID_PYTHON": sys.executable,
            "RLVID_NODE_TMP": NODE_TMP,
            "RLVID_RAY_START": RAY_START,
            "RLVID_PAUSE_S": "1",
        },
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )


def wait_for(launcher: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """Return when it holds."""
    end = time.monotonic() + WAIT_S
    while not condition():
        if launcher.poll() is not None or time.monotonic() > end:
            raise RuntimeError(
                f"it did not come to that; exit status of the launcher {launcher.returncode}"
            )
        time.sleep(0.2)


def is_at(run: Path, step: int) -> bool:
    if not (run / "status.json").exists():
        return False
    status: RunStatus = read_status(run)
    return status.step >= step or status.state == "done"


def works_again(run: Path) -> bool:
    """Return whether an actor that replaced another one has work, or the run is over."""
    status = read_status(run)
    later = [actor for actor in status.actors if not actor.actor_id.endswith(".0")]
    return any(actor.state == "busy" for actor in later) or status.state == "done"


def worker_with_rollouts(hosts: LocalHosts) -> str:
    """Return a host behind the head that runs a rollout actor."""
    for name in hosts.names[1:]:
        if any("RolloutActor" in command for command in hosts.processes(name)):
            return name
    found = {name: hosts.processes(name) for name in hosts.names}
    raise RuntimeError(f"no worker has a rollout actor: {found}")


if __name__ == "__main__":
    main()
