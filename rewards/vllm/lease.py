"""Where a kept server is found again: a private folder on its machine, a lock, a record, a lease.

    FOLDER/owner.lock    held by the supervisor that is attached, dropped by the kernel when it ends
    FOLDER/server.json   what runs, written by `keeper.py`
    FOLDER/NONCE.lease   keep_s; touched by the supervisor every few seconds, watched by the keeper
    FOLDER/NONCE.ready   the server has answered once
    FOLDER/token         the key it asks for

A record is believed only if its processes live, started when it says, since this boot.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import signal
import socket
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvid.rewards.base import RewardError
from rlvid.rewards.vllm.keeper import RECORD_FILE, TOKEN_FILE, boot_id, started

ATTACH_WAIT_S = 20.0
"""For the processes of a driver that died a moment ago to let go of its servers."""
LONGEST_RENEWAL_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptServer:
    """The record of a server that runs under a lease."""

    nonce: str
    pid: int
    """Of its keeper."""
    pid_started: int
    guard: int
    """Leader of the group that holds every process of the server."""
    guard_started: int
    boot_id: str
    host: str
    port: int
    digest: str
    """Of command, environment and model files; a server of another one is of no use."""
    log: str

    @property
    def is_alive(self) -> bool:
        """Whether keeper and guard are those of the record; one that is stopped is as good as dead,
        since it would end nothing."""
        return self.boot_id == boot_id() and all(
            is_running(pid, when)
            for pid, when in ((self.pid, self.pid_started), (self.guard, self.guard_started))
        )


def is_running(pid: int, when: int) -> bool:
    """Return whether the process that started then runs: not ended, not stopped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return started(pid) == when and state not in "ZXTt"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_stopped(pid: int) -> bool:
    """Return whether a process of ours was stopped, by SIGSTOP or a debugger."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (FileNotFoundError, ProcessLookupError):
        return False


def slot_folder(run_folder: Path, name: str, index: int) -> Path:
    """Return the state folder of one replica of a run, on this machine.

    Below XDG_CACHE_HOME or ~/.cache; by the machine's name, as homes are often shared.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    run = hashlib.sha256(str(run_folder.resolve()).encode()).hexdigest()[:16]
    return cache / "rlvid" / "servers" / socket.gethostname() / run / f"{name}-{index}"


class Slot:
    """The place of one replica; at most one supervisor holds it."""

    def __init__(self, folder: Path, *, keep_s: float, where: str) -> None:
        self.folder = folder
        self.keep_s = keep_s
        self._where = where
        self._lock = -1
        self._nonce = ""
        self._stops = threading.Event()
        self._renewing: threading.Thread | None = None

    def open(self) -> None:
        """Make the folder and take the lock.

        Raises:
            ValueError: the folder is not this user's alone.
            RewardError: another supervisor holds it and does not let go.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = self.folder.stat()
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ValueError(
                f"{self._where}: {str(self.folder)!r} holds the keys of model servers: expected a "
                f"folder that only this user may read (mode 700), got mode "
                f"{stat.S_IMODE(found.st_mode):o} of user {found.st_uid}. Change it, or set "
                "XDG_CACHE_HOME."
            )
        self._lock = os.open(self.folder / "owner.lock", os.O_RDWR | os.O_CREAT, 0o600)
        give_up = time.monotonic() + ATTACH_WAIT_S
        while not self._try_lock():
            if time.monotonic() > give_up:
                holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
                os.close(self._lock)
                self._lock = -1
                raise RewardError(
                    f"{self._where}: process {holder or '?'} has supervised this server for more "
                    f"than {ATTACH_WAIT_S:g} s. Another driver of the same run is alive: end it, "
                    "or use another run folder."
                )
            time.sleep(0.05)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def close(self) -> None:
        """Let go: renew no longer, give up the lock. What runs ends with its lease."""
        self.stop_renewing()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def read(self) -> KeptServer | None:
        """Return the record, whether it is true or not; None when there is none to read."""
        try:
            tree: dict[str, Any] = json.loads((self.folder / RECORD_FILE).read_text())
            return KeptServer(**tree)
        except (OSError, ValueError, TypeError):
            return None

    def find(self) -> KeptServer | None:
        """Return the server that runs here; half-started ones and what is left of others end."""
        kept = self.read()
        for lease in self.folder.glob("*.lease"):
            if kept is None or lease.stem != kept.nonce:
                lease.unlink(missing_ok=True)  # its keeper sees that and ends
        if kept is not None and not kept.is_alive:
            self.end(kept, 0.0)
            return None
        return kept

    def new_lease(self, key: str) -> str:
        """Write the key, make a lease that is renewed from now on, and return its nonce."""
        self.stop_renewing()
        descriptor = os.open(self.folder / TOKEN_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(key)
        nonce = secrets.token_hex(8)
        self.start_renewing(nonce)
        return nonce

    def key(self) -> str:
        """Return the key of the server that runs here; "" when there is none."""
        try:
            return (self.folder / TOKEN_FILE).read_text()
        except FileNotFoundError:
            return ""

    def set_ready(self) -> None:
        """Note that the server has answered, for the next supervisor."""
        (self.folder / f"{self._nonce}.ready").touch()

    def is_ready(self, kept: KeptServer) -> bool:
        return (self.folder / f"{kept.nonce}.ready").exists()

    def start_renewing(self, nonce: str) -> None:
        """Touch the lease from a thread: a supervisor may wait long for an answer."""
        self._nonce = nonce
        self._stops = threading.Event()
        # The seconds may be others than those of the supervisor before; a rename shows them whole.
        part = self.folder / f"{nonce}.lease.part"
        part.write_text(f"{self.keep_s}")
        part.replace(self.folder / f"{nonce}.lease")
        self._renewing = threading.Thread(
            target=self._renew, args=(nonce, self._stops), name="lease", daemon=True
        )
        self._renewing.start()

    def stop_renewing(self) -> None:
        self._stops.set()
        if self._renewing is not None:
            self._renewing.join(timeout=10.0)
            self._renewing = None

    def end(self, kept: KeptServer, grace_s: float) -> None:
        """End a server, its keeper and its guard, whatever state they are in."""
        self.stop_renewing()
        if kept.boot_id == boot_id():
            if is_running(kept.pid, kept.pid_started):
                _send(kept.pid, signal.SIGTERM)
                give_up = time.monotonic() + grace_s
                while is_running(kept.guard, kept.guard_started) and time.monotonic() < give_up:
                    time.sleep(0.05)
            # A stopped keeper or guard takes no other signal. The group goes before its leader is
            # forgotten: as long as one member lives, nobody else can have got its number.
            if _is_there(kept.guard, kept.guard_started):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(kept.guard, signal.SIGKILL)
            if _is_there(kept.pid, kept.pid_started):
                give_up = time.monotonic() + 1.0  # it clears away and ends, now that its guard has
                while is_running(kept.pid, kept.pid_started) and time.monotonic() < give_up:
                    time.sleep(0.02)
                _send(kept.pid, signal.SIGKILL)
        for name in (f"{kept.nonce}.lease", f"{kept.nonce}.ready", RECORD_FILE, TOKEN_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _renew(self, nonce: str, stops: threading.Event) -> None:
        while not stops.wait(min(LONGEST_RENEWAL_S, self.keep_s / 4)):
            if not self._touch(nonce):
                return  # the keeper has ended and cleared away

    def _touch(self, nonce: str) -> bool:
        try:
            os.utime(self.folder / f"{nonce}.lease")
        except FileNotFoundError:
            return False
        return True


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_there(pid: int, when: int) -> bool:
    """Return whether the process that started then has not ended; a stopped one has not."""
    try:
        return started(pid) == when
    except (FileNotFoundError, ProcessLookupError):
        return False
