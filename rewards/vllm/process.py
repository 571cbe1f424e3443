"""The processes of one server as its supervisor holds them: a child that ends with it, or kept."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from rlvid.rewards.base import RewardError
from rlvid.rewards.vllm.lease import KeptServer, Slot, is_stopped

GRACE_S = 10.0
"""Between SIGTERM and SIGKILL; vLLM needs about 2.5 s to end its children."""
KEEPER_START_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start a server."""

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    """Appended to; nobody else may read it."""
    folder: Path
    """To run in, else whatever lies in the current folder could be imported."""


class ServerProcess(Protocol):
    """A running server, its guard and all it has started."""

    @property
    def group(self) -> int:
        """Id of the group that holds every process of the server; 0 when there is none."""
        ...

    def has_ended(self) -> bool: ...

    def end(self, grace_s: float) -> None:
        """End the group: SIGTERM, after a while SIGKILL; returns when it is gone."""
        ...

    def let_go(self) -> None:
        """Leave it to its lease where it has one; a child ends."""
        ...


class OwnProcess:
    """A child: its guard watches a pipe that closes when this process ends; see guard.py."""

    def __init__(self, launch: Launch) -> None:
        guard = Path(__file__).with_name("guard.py")
        with _open_log(launch.log) as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(guard), str(GRACE_S), *launch.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(launch.environment),
                cwd=launch.folder,
                start_new_session=True,
            )

    @property
    def group(self) -> int:
        return self._process.pid

    def has_ended(self) -> bool:
        """Whether the guard is gone; it is left unreaped, so that its group id stays ours.

        One that is stopped counts as gone: it would end nothing when this process does.
        """
        if is_stopped(self._process.pid):
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self._process.pid, flags) is not None
        except ChildProcessError:
            return True

    def end(self, grace_s: float) -> None:
        process = self._process
        if not self.has_ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)  # the guard passes it on
            give_up = time.monotonic() + grace_s
            while not self.has_ended() and time.monotonic() < give_up:
                time.sleep(0.05)
        # The guard is not reaped yet, so nobody else can have got this group id.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10.0)
        assert process.stdin is not None, "opened as a pipe"
        process.stdin.close()

    def let_go(self) -> None:
        self.end(GRACE_S)


class KeptProcess:
    """A server under a lease that `slot` renews; see keeper.py."""

    def __init__(self, slot: Slot, kept: KeptServer | None) -> None:
        """`kept` None: it ended before anybody could read its record."""
        self._slot = slot
        self._kept = kept

    @property
    def group(self) -> int:
        return 0 if self._kept is None else self._kept.guard

    def has_ended(self) -> bool:
        return self._kept is None or not self._kept.is_alive

    def end(self, grace_s: float) -> None:
        if self._kept is not None:
            self._slot.end(self._kept, grace_s)

    def let_go(self) -> None:
        self._slot.close()


def start_kept(
    slot: Slot, launch: Launch, *, key: str, host: str, port: int, digest: str
) -> KeptProcess:
    """Start a server that a keeper owns, under a new lease of `slot`.

    Raises:
        RewardError: the keeper did not start.
    """
    nonce = slot.new_lease(key)
    keeper = Path(__file__).with_name("keeper.py")
    record = {"host": host, "port": port, "digest": digest, "log": str(launch.log)}
    arguments = [str(slot.folder), nonce, str(GRACE_S), json.dumps(record)]
    with _open_log(launch.log) as log:
        started = subprocess.run(
            [sys.executable, "-I", "-S", str(keeper), *arguments, *launch.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(launch.environment),
            cwd=launch.folder,
            start_new_session=True,
            timeout=KEEPER_START_S,
            check=False,
        )
    if started.returncode:
        raise RewardError(
            f"servers: the keeper of {slot.folder.name} ended with {started.returncode} before its "
            f"server ran. Its log: {launch.log}"
        )
    kept = slot.read()
    return KeptProcess(slot, kept if kept is not None and kept.nonce == nonce else None)


def _open_log(path: Path) -> IO[bytes]:
    log = path.open("ab")
    os.chmod(path, 0o600)
    return log
