"""One driver per run folder: a lock that ends with its process, and a look at the status file.

A driver that was stopped and goes on hours later must not write into a run that another has taken
over: it still holds the lock, so the other was refused, and said whom to kill.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlvid.launch.control.status import live_driver
from rlvid.launch.run_folder import RunFolderError

logger = logging.getLogger(__name__)

LOCK = "driver.lock"
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def held(run_folder: Path) -> Iterator[None]:
    """Hold the run folder for the length of the block.

    Raises:
        RunFolderError: another driver holds it, here or on another machine.
    """
    other = live_driver(run_folder)
    if other is not None:
        raise _in_use(run_folder, f"{other.host}:{other.pid}")
    descriptor = os.open(run_folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, run_folder)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{socket.gethostname()}:{os.getpid()}".encode())
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, run_folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 256).decode(errors="replace") or "an unknown process"
        raise _in_use(run_folder, holder) from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        logger.warning("this file system has no locks, start one driver only path=%s", run_folder)


def _in_use(run_folder: Path, holder: str) -> RunFolderError:
    return RunFolderError(
        f"run folder {str(run_folder)!r}: the driver {holder} (host:pid) works in it. Wait for it, "
        "end it with `rlvid drain`, or kill it if it is stopped"
    )
