"""CPU time of everything that a command starts, its daemons and their children included."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

PERIOD_S = 0.5
"""Between two looks; what a process does after the last one before it ends is missed."""
MARK = "RLVID_BENCH_MARK"
TICKS = os.sysconf("SC_CLK_TCK")


class MarkedCpu:
    """Adds up the CPU seconds of all processes whose environment has a mark, and of their children.

    Ray's daemons and workers leave the process tree of the driver, and keep its environment; the
    server of a judge is given a clean environment, and stays a child.
    """

    def __init__(self, mark: str) -> None:
        self._wanted = f"{MARK}={mark}".encode()
        self._seconds: dict[tuple[str, str], float] = {}
        """By (pid, start time): a pid may come again."""
        self._marked: set[str] = set()
        """Pids of the last look, whose children are counted too."""

    def look(self) -> None:
        """Note what every marked process has used by now."""
        marked = set()
        for pid in sorted((p.name for p in Path("/proc").iterdir() if p.name.isdigit()), key=int):
            try:
                fields = (Path("/proc") / pid / "stat").read_text().rpartition(")")[2].split()
                key, parent = (pid, fields[19]), fields[1]
                is_child = parent in marked or parent in self._marked
                if not (is_child or key in self._seconds or self._wanted in _environment(pid)):
                    continue
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            marked.add(pid)
            self._seconds[key] = (int(fields[11]) + int(fields[12])) / TICKS
        self._marked = marked

    @property
    def seconds(self) -> float:
        return sum(self._seconds.values())


def _environment(pid: str) -> list[bytes]:
    return (Path("/proc") / pid / "environ").read_bytes().split(b"\0")


def recipe_minutes(run: Path, recipe: str, changes: Sequence[str]) -> float:
    """Run a recipe in its run folder, or what is left of it there; return its CPU minutes."""
    command = [sys.executable, "-m", "rlvid.launch.cli", "run", recipe]
    options = ["--run-folder", str(run), "--resume-if-exists"]
    return run_marked([*command, *changes, *options]) / 60.0


def run_marked(command: Sequence[str]) -> float:
    """Run a command to its end and return its CPU seconds.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    mark = uuid.uuid4().hex
    counted, is_over = MarkedCpu(mark), threading.Event()

    def watch() -> None:
        while not is_over.wait(PERIOD_S):
            counted.look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        subprocess.run(
            command,
            check=True,
            env={**os.environ, MARK: mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    finally:
        is_over.set()
        watcher.join()
    return counted.seconds
