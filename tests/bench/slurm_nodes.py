"""Submits launch/slurm.sbatch to a real Slurm of three nodes on this machine; prints JSON.

apt-get install slurmctld slurmd slurm-client munge     # 22.05 on Debian 12
OMP_NUM_THREADS=1 python -m tests.bench.slurm_nodes > tests/bench/results/cpu_slurm_nodes.json

The nodes are namespaces (`tests/system/local_hosts.py`), each with a slurmd of its own; slurmctld
and munged run on the first. The job is the shortened quickstart on all three. It is told to make
room once its first step is done, with `scancel --signal=TERM --batch` or by its time limit, has to
queue itself again under the same id, and has to go on from its checkpoint.

It is submitted from a copy of the checkout in which every import of rlvid is noted: by which
process of which node, from which file. Before the job makes room the copy is edited, so that
whoever imports rlvid from it dies of that. Nodes have folders of their own for the wheel's code,
and nothing may be left in them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from rlvid.launch.control.status import read_status
from tests.bench.chaos import account_of
from tests.bench.three_nodes import ROOT, SHORT, is_at
from tests.bench.timing import environment
from tests.system.local_hosts import NODE_TMP, LocalHosts, address_of, why_not

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
NUM_NODES = 3
REQUEUE_PAUSE_S = 20
"""Slurm starts a job that was queued again no sooner than credentials of its first start expire."""
CONFIGURATION = """
ClusterName=here
SlurmctldHost=node1({head})
AuthInfo=socket={folder}/munge.socket,cred_expire={pause_s}
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=30
NodeName=node[1-{num_nodes}] NodeAddr={first}.[1-{num_nodes}] CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
CHECKOUT = (
    *("actors", "configs", "launch", "learners", "rewards", "rlvid"),
    *("LICENSE", "README.md", "pyproject.toml", "setup.py"),
)
"""What of the repository is copied to submit from."""
NOTE = """
def _note() -> None:
    import json, pathlib, socket

    command = pathlib.Path("/proc/self/cmdline").read_text().split("\\0")
    with open({notes!r}, "a") as notes:
        notes.write(json.dumps([socket.gethostname(), __file__, command]) + "\\n")


_note()
"""
EDIT = 'raise ImportError("this is the checkout, edited while its job runs")\n'
WAIT_S = 1200.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by", choices=("scancel", "limit"), default="scancel")
    parser.add_argument("--minutes", type=int, default=60, help="time limit of the job")
    parsed = parser.parse_args()
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    reason = f"Slurm is not installed: no {', '.join(missing)}" if missing else why_not()
    if reason:
        raise SystemExit(f"slurm_nodes: {reason}")
    with tempfile.TemporaryDirectory(prefix="slurm_nodes_") as name:
        result = make_room(Path(name), parsed.by, parsed.minutes)
    print(json.dumps({"environment": environment(torch.device("cpu")), **result}, indent=1))


def make_room(folder: Path, by: str, minutes: int) -> dict[str, Any]:
    """Return what became of a job that was told to make room once."""
    run, checkout, notes = folder / "run", folder / "checkout", folder / "imports"
    copy_checkout(checkout, notes)
    with LocalHosts(folder / "hosts", NUM_NODES) as hosts:
        start_slurm(hosts, folder)
        began = time.monotonic()
        job = submit(hosts, folder, checkout, run, minutes)
        try:
            wait_for(lambda: is_at(run, 1), hosts, job)
            num_before = len(notes.read_text().splitlines())
            (checkout / "rlvid/__init__.py").write_text(EDIT)
            if by == "scancel":
                on(hosts, folder, f"scancel --signal=TERM --batch {job}")
            wait_for(lambda: "Restarts=1" in show(hosts, folder, job), hosts, job)
            stopped_at, stopped_s = read_status(run).step, time.monotonic() - began
            wait_for(lambda: "JobState=COMPLETED" in show(hosts, folder, job), hosts, job)
            end = show(hosts, folder, job)
            version = on(hosts, folder, "sbatch -V").strip()
            left = {name: hosts.own_files(name) for name in hosts.names}
        finally:
            log = (folder / f"rlvid-{job}.log").read_text()
            print(log, file=sys.stderr)
    return {
        "slurm": version,
        "made_room_by": by,
        "job": {key: field(end, key) for key in ("JobState", "ExitCode", "Restarts", "NodeList")},
        "steps_done_when_queued_again": stopped_at,
        "seconds_until_queued_again": round(stopped_s, 1),
        "seconds_in_all": round(time.monotonic() - began, 1),
        "doctor_ran": log.count("rlvid doctor"),
        "wheels_built": log.count("wheel.sh: "),
        "imports_of_rlvid_before_the_edit": imports(notes, 0, num_before),
        "imports_of_rlvid_after_it": imports(notes, num_before, None),
        "left_on_the_nodes": left,
        "ledger": account_of(run),
    }


def copy_checkout(checkout: Path, notes: Path) -> None:
    """Copy the repository; whoever imports rlvid from there, or from its wheel, notes it."""
    checkout.mkdir()
    for name in CHECKOUT:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, checkout / name)
    with (checkout / "rlvid/__init__.py").open("a") as library:
        library.write(NOTE.format(notes=str(notes)))


def imports(notes: Path, first: int, end: int | None) -> dict[str, dict[str, int]]:
    """Return how many processes of each node imported rlvid from where: workers of Ray, and others.

    Args:
        first, end: which lines of the notes.
    """
    found: dict[str, Counter[str]] = {}
    for line in notes.read_text().splitlines()[first:end]:
        node, file, command = json.loads(line)
        is_worker = any(word.endswith("default_worker.py") for word in command)
        kind = "Ray workers" if is_worker else "other processes"
        found.setdefault(file, Counter())[f"{kind} of {node}"] += 1
    return {file: dict(sorted(counts.items())) for file, counts in found.items()}


def start_slurm(hosts: LocalHosts, folder: Path) -> None:
    """Start munged and slurmctld on the first host, slurmd on all."""
    (folder / "state").mkdir()
    head = address_of(1)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            folder=folder, head=head, first=head.rpartition(".")[0], num_nodes=NUM_NODES,
            pause_s=REQUEUE_PAUSE_S,
        )
    )  # fmt: skip
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    munged = " ".join(
        f"--{name}={folder}/munge.{name.partition('-')[0]}"
        for name in ("socket", "pid-file", "log-file", "seed-file")
    )
    on(hosts, folder, f"munged --force --key-file={key} {munged}")
    on(hosts, folder, "slurmctld")
    for name in hosts.names:
        on(hosts, folder, "slurmd", host=name)
    end = time.monotonic() + 60.0
    while on(hosts, folder, "sinfo --noheader --format=%D --states=idle").strip() != str(NUM_NODES):
        if time.monotonic() > end:
            raise RuntimeError(f"the nodes are not idle: {on(hosts, folder, 'sinfo')}")
        time.sleep(0.5)


def submit(hosts: LocalHosts, folder: Path, checkout: Path, run: Path, minutes: int) -> str:
    """Submit the script as a user does, with the sizes of this machine; return the job's id."""
    size = f"--nodes={NUM_NODES} --cpus-per-task=2 --gpus-per-node=0 --time={minutes}"
    log = f"--output={folder}/rlvid-%j.log"
    command = (
        f"cd {checkout} && RLVID_VENV={sys.prefix} RLVID_NODE_TMP={NODE_TMP} sbatch --parsable "
        f"{size} {log} launch/slurm.sbatch quickstart_cpu {' '.join(SHORT)} --run-folder {run}"
    )
    return on(hosts, folder, command).strip()


def on(hosts: LocalHosts, folder: Path, command: str, host: str = "node1") -> str:
    """Run a command on a host and return what it said."""
    words = f"export SLURM_CONF={folder}/slurm.conf; {command}"
    done = subprocess.run(
        [str(hosts.ssh), host, words], capture_output=True, text=True, timeout=60.0, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{host}: {command!r} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def show(hosts: LocalHosts, folder: Path, job: str) -> str:
    return on(hosts, folder, f"scontrol show job {job}")


def field(shown: str, key: str) -> str:
    """Return a field of `scontrol show job`."""
    return next(word.partition("=")[2] for word in shown.split() if word.startswith(f"{key}="))


def wait_for(condition: Any, hosts: LocalHosts, job: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"job {job}: it did not come to that within {WAIT_S:g} s")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
