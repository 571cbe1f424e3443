"""CPU time of everything that a command starts, its daemons and their children included."""

from __future__ import annotations

import os
import subprocess
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

PERIOD_S = 0.5
"""Between two looks; what a process does after the last one before it ends is missed."""
MARK = "RLVID_BENCH_MARK"
TICKS = os.sysconf("SC_CLK_TCK")


class MarkedCpu:
    """Adds up the CPU seconds of all processes whose environment has a mark.

    Ray's daemons and workers leave the process tree of the driver, and keep its environment.
    """

    def __init__(self, mark: str) -> None:
        self._wanted = f"{MARK}={mark}".encode()
        self._seconds: dict[tuple[str, str], float] = {}
        """By (pid, start time): a pid may come again."""

    def look(self) -> None:
        """Note what every marked process has used by now."""
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                key = folder.name, fields[19]
                # A process between fork and exec still has its parent's environment: ask again.
                if key not in self._seconds and self._wanted not in _environment(folder):
                    continue
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            self._seconds[key] = (int(fields[11]) + int(fields[12])) / TICKS

    @property
    def seconds(self) -> float:
        return sum(self._seconds.values())


def _environment(process: Path) -> list[bytes]:
    return (process / "environ").read_bytes().split(b"\0")


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
