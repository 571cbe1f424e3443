"""The folder of a run as a kill would leave it, taken from a run that then goes on to its end.

So one run is two, the one that was interrupted and the one that nobody interrupted: most of a small
run is its start. While the folder is copied the driver and every process below it are stopped, so
the copy is what SIGKILL would leave at that moment. That a driver which is killed in earnest leaves
nothing else behind is `test_driver_death`; that its run can be resumed, `test_main_job`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

STOP_S = 20.0
POLL_S = 0.02


def log_of(run: Path) -> Path:
    """Return the file that has what a run of `start` said."""
    return run.with_name(f"{run.name}.log")


def start(recipe: Path, run: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start `rlvid run`."""
    command = [sys.executable, "-m", "rlvid.launch.cli", "run", str(recipe)]
    with log_of(run).open("ab") as log:
        return subprocess.Popen(
            [*command, "--run-folder", str(run), *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], run: Path, *, within_s: float) -> None:
    """Wait for the end of a run, which must be a good one."""
    try:
        assert process.wait(timeout=within_s) == 0, log_of(run).read_text()[-4000:]
    finally:
        process.kill()


def run_and_copy(
    recipe: Path, run: Path, copy: Path, is_time: Callable[[], bool], *, within_s: float
) -> None:
    """Run a recipe to its end, and copy its folder in the middle, as soon as it is time.

    Args:
        within_s: for each half.
    """
    process = start(recipe, run)
    try:
        give_up = time.monotonic() + within_s
        while not is_time():
            assert process.poll() is None, log_of(run).read_text()[-4000:]
            assert time.monotonic() < give_up, "it did not come to that"
            time.sleep(POLL_S)
        with _stopped(process.pid):
            shutil.copytree(run, copy)
    except BaseException:
        process.kill()
        raise
    finish(process, run, within_s=within_s)


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """Have a process and all below it stopped; it first, as it starts the others."""
    driver = psutil.Process(pid)
    driver.suspend()
    processes = [driver]
    try:
        processes += driver.children(recursive=True)
        for process in processes[1:]:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        give_up = time.monotonic() + STOP_S
        while not all(_rests(process) for process in processes):
            assert time.monotonic() < give_up, "a process does not stop"
            time.sleep(POLL_S)
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _rests(process: psutil.Process) -> bool:
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
