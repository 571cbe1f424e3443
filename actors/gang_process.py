"""A peer of a rollout actor as a process: started, woken, watched, ended. Standard library only."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping

logger = logging.getLogger(__name__)

MODULE = "rlvid.actors.gang_peer"
KEPT_LINES = 12
"""Of what a peer prints, for the message when it ends."""
LONGEST_LINE = 2000
START_S = 60.0
"""To execute the interpreter; what it imports and loads is waited for elsewhere."""


class GangError(RuntimeError):
    """A process of a gang ended, did not answer or broke off: the actor is to be replaced."""


class PeerProcess:
    """An interpreter that runs `gang_peer`; it dies with the process that started it."""

    def __init__(self, rank: int, first_line: bytes, environment: Mapping[str, str]) -> None:
        """Start it.

        Args:
            first_line: its settings, what it finds on standard input before anything else.
            environment: variables beside and instead of ours.

        Raises:
            GangError: the interpreter cannot be started.
        """
        self.rank = rank
        self.ended_at: float | None = None
        """time.monotonic() at which it was found gone."""
        self._environment = {**os.environ, "PYTHONPATH": _import_path(), **environment}
        self._first_line = first_line
        self._last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._started = threading.Event()
        self._error: OSError | None = None
        # "Die with the parent" means the thread that starts a child. It reads what the child prints
        # until the child is gone, so it outlives it.
        self._drain = threading.Thread(
            target=self._start_and_drain, name=f"gang-peer-{rank}", daemon=True
        )
        self._drain.start()
        if not self._started.wait(START_S) or self._error is not None:
            raise GangError(
                f"rollout.sequence_parallel: rank {rank}: {sys.executable} could not be started "
                f"within {START_S:g} s ({self._error}); look at the node's disk and memory"
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wake(self) -> None:
        """Have it take part in the next exchange; it sleeps on standard input until then."""
        with contextlib.suppress(BrokenPipeError):  # the exchange will fail, and say why
            os.write(self._inbox, b".")

    def end(self) -> None:
        """Kill it and wait until it is gone; harmless when it is."""
        self._process.kill()
        self._drain.join(timeout=10.0)

    def obituary(self, within_s: float) -> str:
        """Return how it ended and its last lines; "" of one that lives on so long."""
        self._drain.join(timeout=within_s)
        code = self._process.poll()
        if code is None:
            return ""
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        lines = " | ".join(line for line in self._last_lines if line.strip())
        said = f"its last lines: {lines}" if lines else "it printed nothing"
        return f"rank {self.rank} (process {self.pid}) ended by {how}; {said}"

    def _start_and_drain(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(os.getpid())],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
            )
            assert self._process.stdin is not None
            self._inbox = self._process.stdin.fileno()
            os.write(self._inbox, self._first_line)  # less than a pipe holds
        except OSError as error:
            self._error = error
            return
        finally:
            self._started.set()
        assert self._process.stdout is not None
        with open(self._process.stdout.fileno(), "rb", closefd=False) as stream:
            while line := stream.readline(LONGEST_LINE):
                text = line.decode("utf-8", "replace").rstrip()
                self._last_lines.append(text)
                logger.info("gang rank=%d said=%r", self.rank, text)
        self._process.wait()
        self.ended_at = time.monotonic()


def _import_path() -> str:
    """Return what this process imports from, which Ray may have changed since it began."""
    return os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
