"""Ends what a driver leaves behind when it is killed: the processes of the Ray cluster it started.

    python -I -S cluster_guard.py MARK GRACE_S

Ray ends most of its processes by itself when their parent dies; its agents stay for a minute or
more, and a stopped process for good. So every process of a local cluster carries a variable with a
mark of this driver, and this one, in a session of its own, watches a pipe that only the driver
holds: when the driver ends, however it ends, whatever still has the mark GRACE_S seconds later is
killed. Model servers that are kept for the next driver (`rewards.servers.NAME.keep_s`) have none.

Ray gives some of its processes a title, which wipes variables out, the first ones; such a process
is known by its parent, and remembered when that one is gone. `ssh_hosts.sh` clears nodes so.

Standard library only, and no import of ours, so that it starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "RLVID_CLUSTER_MARK"
GRACE_S = 4.0
"""For Ray to end its processes itself, sockets and shared memory included."""
KILL_FOR_S = 20.0
"""How long the guard goes on killing before it gives up: a process may hang in the kernel."""
AT_ONCE = b"at once"
"""Comes through the pipe from a driver that has shut Ray down itself."""


@contextmanager
def guarded() -> Iterator[None]:
    """Have every process that is started in the block end with this one."""
    mark = secrets.token_hex(8)
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, mark, str(GRACE_S)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # a kill of the driver's group must not reach it
    )
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = mark
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before
        # Ray is shut down: what is left is of no use to anybody, and no grace is due.
        with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
            guard.communicate(AT_ONCE, timeout=GRACE_S + KILL_FOR_S)


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told from a later one of the same number by when it started."""

    pid: int
    started: int
    """Ticks since boot."""
    parent: int
    environment: frozenset[bytes]
    has_title: bool
    """It wrote over its own environment, the first part at the least."""


def running() -> Iterator[Process]:
    """Yield the processes whose environment this user may read, zombies not."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        # It ended meanwhile, or is another user's.
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            environment = (folder / "environ").read_bytes()
            if fields[0] != "Z":
                yield Process(
                    pid=int(folder.name),
                    started=int(fields[19]),
                    parent=int(fields[1]),
                    environment=frozenset(environment.split(b"\0")),
                    has_title=is_title(environment),
                )


def is_title(environment: bytes) -> bool:
    """Return whether what is read as a process's environment begins with something else.

    A title takes the room of arguments and variables: a short one leaves zeros, the end of a long
    one stands where the first variable was.
    """
    name, is_variable, _ = environment.partition(b"\0")[0].partition(b"=")
    return not (is_variable and name.decode("latin-1").isidentifier())


def marked(mark: str, known: Collection[Process] = ()) -> list[Process]:
    """Return what has the mark, titled children of it, and what is left of `known`."""
    everybody = list(running())
    before = {(process.pid, process.started) for process in known}
    wanted = f"{VARIABLE}={mark}".encode()
    found = {
        process.pid: process
        for process in everybody
        if wanted in process.environment or (process.pid, process.started) in before
    }
    titled = [process for process in everybody if process.has_title]
    while more := [p for p in titled if p.parent in found and p.pid not in found]:
        found |= {process.pid: process for process in more}
    return list(found.values())


def main() -> None:
    mark, grace_s = sys.argv[1], float(sys.argv[2])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when the driver does, and not before
    if sys.stdin.buffer.read() == AT_ONCE:
        grace_s = 0.0
    ended = time.monotonic()
    left: list[Process] = []
    while (late_s := time.monotonic() - ended) < grace_s + KILL_FOR_S:
        left = marked(mark, left)
        if not left:
            return
        if late_s >= grace_s:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
