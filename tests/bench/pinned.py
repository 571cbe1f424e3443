"""Gives the rollout actors a core of their own, and everything else of a bench another one.

What a GPU is to a cluster, one core is here: sampling has a device that nothing else works on, and
whoever decodes, scores and writes beside it takes nothing from it but what it makes it wait.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

SAMPLES = "RolloutActor"
"""In the title that Ray gives a process with an actor in it."""
PERIOD_S = 0.05


@contextmanager
def sampling_pinned(sampling: int = 1, others: int = 0) -> Iterator[None]:
    """Keep the descendants of this process that sample on one core, and all others on another.

    Raises:
        AssertionError: No process with a rollout actor was seen, so nothing was measured.
    """
    stopped, seen = threading.Event(), set[int]()

    def watch() -> None:
        while not stopped.wait(PERIOD_S):
            for process in psutil.Process().children(recursive=True):
                try:
                    samples = SAMPLES in " ".join(process.cmdline())
                    _pin(process.pid, sampling if samples else others)
                except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                    continue  # Ended between the two looks.
                if samples:
                    seen.add(process.pid)

    mine = os.sched_getaffinity(0)
    _pin(os.getpid(), others)
    watcher = threading.Thread(target=watch, name="pins", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stopped.set()
        watcher.join(10.0)
        for thread in psutil.Process().threads():
            os.sched_setaffinity(thread.id, mine)
    assert seen, f"no process titled {SAMPLES} was started"


def _pin(pid: int, core: int) -> None:
    """Move every thread of a process: the call for a process moves its first thread only."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        if os.sched_getaffinity(int(thread)) != {core}:
            os.sched_setaffinity(int(thread), {core})
