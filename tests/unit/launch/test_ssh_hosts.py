"""What ssh_hosts.sh does with its hosts; ssh, Ray and rlvid are stand-ins, the guard is real."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[3] / "launch"
SSH = """
while [[ "$1" == -* ]]; do shift 2; done
[ "$1" = "$UNREACHABLE" ] && exit 255
export HOST="$1"
shift
echo "$HOST $*" >> "$FOLDER/commands"
mkdir -p "$FOLDER/$HOST"
exec env -u BASH_ENV bash -c "$(echo "$*" | sed "s:/NODE_TMP:$FOLDER/$HOST:g")"
"""
"""Every host has a folder of its own for what is shipped to it."""
RAY = """
echo "$HOST $RAY_AUTH_MODE $(cat "$RAY_AUTH_TOKEN_PATH" | wc -c) $*" >> "$FOLDER/ray"
[ "$HOST" = "$NO_RAY" ] && exit 1
cmp -s "$PYTHONPATH/sitecustomize.py" "$LAUNCH/wheel_first.py" && echo "$HOST" >> "$FOLDER/pinned"
sleep 300 >/dev/null 2>&1 &
echo $! >> "$FOLDER/nodes"
"""
PYTHON = """
case "$*" in
  "-m pip "*) cp "$FOLDER/a.whl" "$7/rlvid-0-py3-none-any.whl" ;;
  "-m zipfile "*) mkdir -p "$5/rlvid/launch"; cp "$LAUNCH"/*.py "$5/rlvid/launch" ;;
  "-m rlvid.launch.cli doctor "*) echo "$HOST $*" >> "$FOLDER/doctor"; exit "${DOCTOR:-0}" ;;
  "-m rlvid.launch.cli run "*)
    echo "$HOST $*" >> "$FOLDER/ran"
    trap 'exit 75' TERM
    for _ in $(seq "${TURNS:-1}"); do sleep 0.1; done
    set -- $STATUSES
    shift $(($(wc -l < "$FOLDER/ran") - 1))
    exit "${1:-0}" ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Stand-ins on PATH, and two hosts of which the second has an address of its own."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, code in {
        "ssh": SSH,
        "ray": RAY,
        "python": PYTHON,
        "hostname": "echo 10.0.0.1",
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{code}\n")
        (tools / name).chmod(stat.S_IRWXU)
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name in ("METADATA", "RECORD"):
            wheel.writestr(f"rlvid-0.dist-info/{name}", "")
    (tmp_path / "hosts").write_text("# the head\nfirst\n\nsecond 10.0.0.2 # fast\n")
    return {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "FOLDER": str(tmp_path),
        "LAUNCH": str(LAUNCH),
        "REAL_PYTHON": sys.executable,
        "RLVID_PYTHON": str(tools / "python"),
        "RLVID_NODE_TMP": "/NODE_TMP",
        "RLVID_PAUSE_S": "0",
    }


def start(environment: dict[str, str]) -> subprocess.Popen[str]:
    hostfile = f"{environment['FOLDER']}/hosts"
    return subprocess.Popen(
        ["bash", str(LAUNCH / "ssh_hosts.sh"), hostfile, "my", "--run-folder", "/shared", "seed=1"],
        env=environment, text=True, stderr=subprocess.PIPE,
    )  # fmt: skip


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def until(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    give_up = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < give_up, f"it did not come true in {limit_s:g} s"
        time.sleep(0.02)


def nodes_that_live(folder: Path) -> list[int]:
    """Return the stand-ins for Ray that still run; one that nobody has waited for does not."""
    return [pid for pid in map(int, lines(folder / "nodes")) if is_alive(pid)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_head_then_workers_then_doctor_then_driver_then_nothing_is_left(
    environment: dict[str, str], tmp_path: Path
) -> None:
    launcher = start(environment)
    _, errors = launcher.communicate(timeout=60.0)
    assert launcher.returncode == 0, errors
    head, worker = lines(tmp_path / "ray")
    assert head.startswith("first token 65 start --head --port=6379 --dashboard-host=127.0.0.1")
    assert worker == "second token 65 start --address=10.0.0.1:6379 --node-ip-address=10.0.0.2"
    [doctor] = lines(tmp_path / "doctor")
    assert doctor.endswith("doctor --cluster 10.0.0.1:6379 --nodes 2")
    [ran] = lines(tmp_path / "ran")
    wanted = "run my --run-folder /shared seed=1 --resume-if-exists --restarts 3 cluster.address="
    assert ran.startswith(f"first -m rlvid.launch.cli {wanted}10.0.0.1:6379")
    assert lines(tmp_path / "pinned") == ["first", "second"]
    assert nodes_that_live(tmp_path) == []
    assert [list((tmp_path / host).iterdir()) for host in ("first", "second")] == [[], []]


def test_no_command_line_has_the_token(environment: dict[str, str], tmp_path: Path) -> None:
    """Whoever may list processes could read it there."""
    keep = tmp_path / "bin" / "ray"
    keep.write_text(keep.read_text() + 'cp "$RAY_AUTH_TOKEN_PATH" "$FOLDER/token"\n')
    assert start(environment).wait(timeout=60.0) == 0
    token = (tmp_path / "token").read_text().strip()
    assert len(token) == 64
    assert token not in (tmp_path / "commands").read_text() + (tmp_path / "ran").read_text()


def test_a_run_that_made_room_is_started_again(environment: dict[str, str], tmp_path: Path) -> None:
    assert start({**environment, "STATUSES": "75 255 0"}).wait(timeout=60.0) == 0
    assert len(lines(tmp_path / "ran")) == 3
    assert len(lines(tmp_path / "ray")) == 6  # a new cluster each
    assert nodes_that_live(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "status", "num_runs"),
    [
        ({"STATUSES": "2"}, 2, 1),
        ({"STATUSES": "1"}, 1, 1),
        ({"DOCTOR": "1"}, 1, 0),
        ({"UNREACHABLE": "second"}, 1, 0),
        ({"NO_RAY": "second"}, 1, 0),
        ({"STATUSES": "75 75 75", "RLVID_ATTEMPTS": "2"}, 75, 2),
    ],
)
def test_what_ends_it(
    environment: dict[str, str],
    tmp_path: Path,
    changes: dict[str, str],
    status: int,
    num_runs: int,
) -> None:
    assert start({**environment, **changes}).wait(timeout=60.0) == status
    assert len(lines(tmp_path / "ran")) == num_runs
    assert nodes_that_live(tmp_path) == []


def test_sigterm_makes_room_and_queues_nothing_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    launcher = start({**environment, "TURNS": "300"})
    until(lambda: bool(lines(tmp_path / "ran")))
    time.sleep(0.2)  # until the stand-in listens
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=60.0) == 75
    assert len(lines(tmp_path / "ran")) == 1
    assert nodes_that_live(tmp_path) == []


def test_nodes_end_with_a_launcher_that_is_killed(
    environment: dict[str, str], tmp_path: Path
) -> None:
    launcher = start({**environment, "TURNS": "20"})
    until(lambda: bool(lines(tmp_path / "ran")))
    assert len(nodes_that_live(tmp_path)) == 2
    launcher.kill()
    launcher.wait()
    until(lambda: not nodes_that_live(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["my"], "usage: "),
        (["none", "my"], "usage: "),
        (["none", "my", "--run-folder", "/shared"], "ssh_hosts.sh: no host in the host file"),
        (["missing", "my", "--run-folder", "/shared"], "no host file at missing"),
        ([".", "my", "--run-folder", "/shared"], "no host file at ."),
    ],
)
def test_it_needs_hosts_and_a_folder(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "none").write_text("# none\n")
    done = subprocess.run(
        ["bash", str(LAUNCH / "ssh_hosts.sh"), *arguments],
        cwd=tmp_path, timeout=30.0, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
