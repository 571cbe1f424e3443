"""The parent that starts a driver again; a small script stands in for the driver."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlvid.launch import restarts
from rlvid.launch.cli_run import holds_run
from rlvid.launch.restarts import driver_command, run_with_restarts

DRIVER = """
import os, signal, sys, time
from pathlib import Path

folder, ends = Path(sys.argv[1]), sys.argv[2].split(",")
starts = folder / "starts"
number = len(starts.read_text().split()) if starts.exists() else 0
with starts.open("a") as file:
    print(" ".join([str(os.getpid()), *sys.argv[3:]]), file=file)
end = ends[min(number, len(ends) - 1)]
if end == "drain":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    time.sleep(60)
elif end == "hang":
    time.sleep(60)
elif end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
elif end == "freeze":
    os.write(int(os.environ["RLVID_HEARTBEAT_FD"]), b".")
    os.kill(os.getpid(), signal.SIGSTOP)
sys.exit(int(end))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(restarts, "LOOK_EVERY_S", 0.02)


def command(folder: Path, ends: str, *flags: str) -> list[str]:
    return [sys.executable, "-IS", "-c", DRIVER, str(folder), ends, *flags]


def starts(folder: Path) -> list[list[str]]:
    path = folder / "starts"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def run(folder: Path, ends: str, num_restarts: int) -> int:
    return run_with_restarts(
        command(folder, ends), command(folder, ends, "again"), restarts=num_restarts
    )


def test_a_killed_driver_and_a_crashed_one_are_started_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "kill,1,0", 5) == 0
    assert [flags for _, *flags in starts(tmp_path)] == [[], ["again"], ["again"]]
    said = capfd.readouterr().err
    assert re.search(r"was killed by SIGKILL after \d+ s; restart 1 of 5 in 0.05 s", said)
    # Pauses double.
    assert re.search(r"ended with status 1 after \d+ s; restart 2 of 5 in 0.1 s", said)


@pytest.mark.parametrize("status", [0, 2, 75])
def test_what_another_start_would_not_mend_is_passed_on(tmp_path: Path, status: int) -> None:
    """Done, an error of the user's, and asked to make room on this very machine."""
    assert run(tmp_path, str(status), 5) == status
    assert len(starts(tmp_path)) == 1


def test_the_budget_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "kill", 2) == 128 + signal.SIGKILL
    assert len(starts(tmp_path)) == 3
    assert "all 2 restarts are used up" in capfd.readouterr().err


PARENT = """
import sys
from rlvid.launch.restarts import run_with_restarts
sys.exit(run_with_restarts(sys.argv[1:], sys.argv[1:], restarts=3))
"""


def parent_of(folder: Path, ends: str) -> subprocess.Popen[bytes]:
    """Start the parent and wait until its driver has come as far as to listen."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *command(folder, ends)])
    give_up = time.monotonic() + 30.0
    while not starts(folder) and time.monotonic() < give_up:
        time.sleep(0.02)
    time.sleep(0.3)
    return parent


@pytest.mark.parametrize("end", ["drain", "hang"])
def test_a_request_to_make_room_reaches_the_driver_and_ends_both(tmp_path: Path, end: str) -> None:
    """Also when the driver dies of the signal, as it does before it listens."""
    parent = parent_of(tmp_path, end)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=20.0) == 75
    assert len(starts(tmp_path)) == 1


def test_a_killed_parent_takes_its_driver_along(tmp_path: Path) -> None:
    """Else two drivers would write to one run folder as soon as it is queued again."""
    parent = parent_of(tmp_path, "drain")
    [[driver]] = starts(tmp_path)
    parent.kill()
    parent.wait(timeout=10.0)
    give_up = time.monotonic() + 20.0
    stat = Path(f"/proc/{driver}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < give_up, "the driver lives on"
        time.sleep(0.02)


def test_the_driver_s_command_is_the_user_s(tmp_path: Path) -> None:
    line = driver_command("my.yaml", ["seed=1"], tmp_path, "--resume-if-exists")
    wanted = ["run", "my.yaml", "seed=1", "--run-folder", str(tmp_path), "--resume-if-exists"]
    assert line[-6:] == wanted
    assert not holds_run(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    assert holds_run(tmp_path)


def test_resume_if_exists_needs_the_folder_it_looks_into(tmp_path: Path) -> None:
    """A launcher's second attempt would otherwise start a run beside the first."""
    answer = subprocess.run(
        [sys.executable, "-m", "rlvid.launch.cli", "run", "quickstart_cpu", "--resume-if-exists"],
        cwd=tmp_path, env={**os.environ}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert answer.returncode == 2
    assert "--resume-if-exists looks into the --run-folder" in answer.stderr


def test_an_error_of_the_user_s_is_not_tried_five_times(tmp_path: Path) -> None:
    """Through the command line: the driver's exit status 2 comes out at the top."""
    answer = subprocess.run(
        [sys.executable, "-m", "rlvid.launch.cli", "run", "quickstart_cpu", "--restarts", "5",
         "--run-folder", str(tmp_path / "run"), "learner.num_gpus=512"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1


def test_a_stopped_driver_is_killed_and_started_again(tmp_path: Path) -> None:
    """SIGSTOP ends nothing and raises nothing; only the missing sign of life tells."""
    status = run_with_restarts(
        command(tmp_path, "freeze,0"), command(tmp_path, "freeze,0"), restarts=1, stall_s=0.3
    )
    assert status == 0
    assert len(starts(tmp_path)) == 2


def test_a_driver_that_beats_is_left_alone(tmp_path: Path) -> None:
    """A long start without a beat is no silence, and neither is a slow run."""
    script = (
        "import time\nfrom rlvid.launch.heartbeat import beating\n"
        "with beating():\n    time.sleep(2.5)\n"
    )
    beats = [sys.executable, "-c", script]
    assert run_with_restarts(beats, beats, restarts=0, stall_s=1.5) == 0
