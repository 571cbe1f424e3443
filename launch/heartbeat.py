"""A driver's sign of life to the parent that starts it again: a byte a second through a pipe.

    parent: open_heartbeat() --> fd in the child's environment --> silence_s(), read now and then
    driver: beating()        --> a thread writes while the process runs

A stopped process (SIGSTOP, a frozen container) exits never and says nothing; only silence tells. A
thread says that the process runs, not that its loop gets on: every wait of that has a deadline.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "RLVID_HEARTBEAT_FD"
PERIOD_S = 1.0


class Heartbeat:
    """The parent's end."""

    def __init__(self) -> None:
        self._read, self.write_fd = os.pipe()
        os.set_blocking(self._read, False)
        self._heard = time.monotonic()
        self._has_begun = False

    def silence_s(self) -> float:
        """Return seconds since the last byte; 0 before the first, while the child imports."""
        try:
            if os.read(self._read, 65536):
                self._heard, self._has_begun = time.monotonic(), True
        except BlockingIOError:
            pass
        return time.monotonic() - self._heard if self._has_begun else 0.0

    def close(self) -> None:
        os.close(self._read)
        os.close(self.write_fd)


@contextmanager
def beating() -> Iterator[None]:
    """Beat for the length of the block, if a parent listens."""
    named = os.environ.get(VARIABLE)
    if named is None:
        yield
        return
    # Ray's processes inherit the environment; the pipe is this process's alone.
    del os.environ[VARIABLE]
    descriptor = int(named)
    os.set_inheritable(descriptor, False)
    os.set_blocking(descriptor, False)
    stops = threading.Event()
    thread = threading.Thread(target=_beat, args=(descriptor, stops), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stops.set()
        thread.join(timeout=2 * PERIOD_S)


def _beat(descriptor: int, stops: threading.Event) -> None:
    while True:
        try:
            os.write(descriptor, b".")
        except BlockingIOError:
            pass  # the parent is behind with reading: it knows of us
        except OSError:
            return  # the parent is gone
        if stops.wait(PERIOD_S):
            return
