"""What a killed driver leaves behind; sleeping processes stand in for Ray's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlvid.launch import cluster_guard

DRIVER = """
import os, subprocess, sys, time
from rlvid.launch import cluster_guard
cluster_guard.GRACE_S = 0.5
sleep = [sys.executable, "-IS", "-c", "import time; time.sleep(100)"]
bare = {name: value for name, value in os.environ.items()}
with cluster_guard.guarded():
    running = subprocess.Popen(sleep, start_new_session=True, stdout=-3)
    stopped = subprocess.Popen(sleep, start_new_session=True, stdout=-3)
    other = subprocess.Popen(sleep, env=bare, stdout=-3)
    os.kill(stopped.pid, 19)
    print(running.pid, stopped.pid, other.pid, flush=True)
    if sys.argv[1] == "waits":
        time.sleep(100)
print(cluster_guard.VARIABLE in os.environ, flush=True)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(holds: Callable[[], bool], limit_s: float = 15.0) -> None:
    give_up = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < give_up, f"it did not come true in {limit_s:g} s"
        time.sleep(0.02)


def start(how: str) -> tuple[subprocess.Popen[str], list[int]]:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, how],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert driver.stdout is not None
    return driver, [int(pid) for pid in driver.stdout.readline().split()]


def test_all_that_a_killed_driver_started_ends_and_nothing_else() -> None:
    """Its whole group is killed, as a scheduler does it; a stopped process ends as well."""
    driver, [running, stopped, other] = start("waits")
    assert [is_alive(pid) for pid in (running, stopped, other)] == [True] * 3
    driver.kill()
    driver.communicate(timeout=10.0)
    until(lambda: not is_alive(running) and not is_alive(stopped))
    assert is_alive(other)
    os.kill(other, signal.SIGKILL)


def test_the_guard_survives_the_kill_of_its_driver_s_group() -> None:
    driver, [running, stopped, _] = start("waits")
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=10.0)
    until(lambda: not is_alive(running) and not is_alive(stopped))


def test_an_orderly_end_clears_away_at_once() -> None:
    """And takes the mark off: what the process starts later is not part of the cluster."""
    driver, [running, stopped, other] = start("ends")
    said, _ = driver.communicate(timeout=20.0)
    assert said == "False\n"
    assert [is_alive(pid) for pid in (running, stopped, other)] == [False, False, True]
    os.kill(other, signal.SIGKILL)


def test_a_mark_is_compared_whole() -> None:
    environment = {**os.environ, cluster_guard.VARIABLE: "0123"}
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        try:
            until(lambda: [p.pid for p in cluster_guard.marked("0123")] == [process.pid])
            assert cluster_guard.marked("012") == []
        finally:
            process.kill()


def test_what_hides_its_environment_is_known_by_its_parent_and_then_by_itself() -> None:
    """As Ray's agents do, which give themselves a title; the kernel then shows no variables."""
    hides = [sys.executable, "-IS", "-c", HIDING_CHILD]
    environment = {**os.environ, cluster_guard.VARIABLE: "4567"}
    with subprocess.Popen(hides, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until(lambda: any(p.pid == child and p.has_title for p in cluster_guard.running()))
        found = cluster_guard.marked("4567")
        assert {process.pid for process in found} == {parent.pid, child}
        parent.kill()
        parent.wait()
        assert cluster_guard.marked("4567") == []
        assert [process.pid for process in cluster_guard.marked("4567", found)] == [child]
        os.kill(child, signal.SIGKILL)


HIDING_CHILD = '''
import os, subprocess, sys, time
child = """
import ctypes, sys, time
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
ctypes.memset(int(fields[47]), 0, len("RLVID_CLUSTER_MARK=4567"))
time.sleep(100)
"""
first = {"RLVID_CLUSTER_MARK": "4567", "LATER": "stays"}
print(subprocess.Popen([sys.executable, "-IS", "-c", child], env=first).pid, flush=True)
time.sleep(100)
'''
"""Field 50 of the status is where the environment begins."""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (b"PATH=/bin\0HOME=/root\0", False),
        (b"_=/usr/bin/env\0", False),
        (b"\0\0\0\0HOME=/root\0", True),
        (b"", True),
        (b"rd.modules.train.train_head'], **{'sys_path': ['/a=b']})\0HOME=/root\0", True),
    ],
)
def test_a_title_is_told_from_variables(environment: bytes, expected: bool) -> None:
    """A long one runs into the variables: its text stands where the first one was."""
    assert cluster_guard.is_title(environment) is expected
