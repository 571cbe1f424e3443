"""A process of ours that answers frames over pipes, and never makes us wait beyond a deadline.

Frames are `magic, length, body` both ways. The child has its own process group, so that killing it
takes what it started along, and it dies with us: it asks the kernel for that (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

from rlvid.rewards.base import RewardError, RewardTimeoutError

logger = logging.getLogger(__name__)

MAGIC = b"rlv1"
HEADER = struct.Struct(">4sQ")
"""Magic and number of bytes of the body."""
CHUNK = 1 << 20
KEPT_LINES = 20
"""Of the child's standard error, for the message when it dies."""
LONGEST_LINE = 2000
START_S = 60.0
"""To execute a command; what it loads is waited for elsewhere."""


class ChildProcess:
    """Owns the process and its three pipes."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, where: str
    ) -> None:
        """Start it.

        Raises:
            OSError: the command cannot be started.
            RewardTimeoutError: the system takes too long to start it.
        """
        self._where = where
        self._last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._reaping = threading.Lock()
        self._is_ended = False
        self._reason = ""
        self._started = threading.Event()
        self._error: OSError | None = None
        # The thread that starts a child must outlive it: the kernel's "die with the parent" means
        # that thread. So it is the one that reads standard error until the child is gone.
        self._drain = threading.Thread(
            target=self._start_and_drain, args=(list(command), dict(environment)), daemon=True
        )
        self._drain.start()
        if not self._started.wait(START_S):
            raise RewardTimeoutError(
                f"{where}: {command[0]!r} could not be started within {START_S:g} s. It lies on a "
                "disk that does not answer."
            )
        if self._error is not None:
            raise self._error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._inbox = self._process.stdout.fileno()
        self._outbox = self._process.stdin.fileno()
        for pipe in (self._inbox, self._outbox):
            os.set_blocking(pipe, False)
            if sys.platform == "linux":  # 64 KiB would mean a change of process for each piece
                with contextlib.suppress(OSError):  # the user's pipes may be at their limit
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, CHUNK)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return not self._is_ended and self._exit_status() is None

    def request(self, body: bytes, *, deadline: float, max_bytes: int) -> bytes:
        """Send a frame and return the answer; see `receive` for what it raises."""
        self._send(HEADER.pack(MAGIC, len(body)), deadline)
        self._send(body, deadline)
        return self.receive(deadline=deadline, max_bytes=max_bytes)

    def receive(self, *, deadline: float, max_bytes: int) -> bytes:
        """Return the body of the next frame. `deadline` is a time of time.monotonic().

        Raises:
            RewardTimeoutError: it did not come in time.
            RewardError: the child died, or what came is no frame of at most `max_bytes`.
        """
        magic, length = HEADER.unpack(self._read(HEADER.size, deadline))
        if magic != MAGIC:
            raise RewardError(f"{self._where}: its process answered with bytes that are no frame")
        if length > max_bytes:
            raise RewardError(
                f"{self._where}: its process announced {length} bytes, expected at most {max_bytes}"
            )
        return bytes(self._read(length, deadline))

    def end(self, reason: str = "") -> None:
        """End the process and all it started, from any thread; who waits for it is told `reason`.

        The pipes stay open: another thread may be reading from them, and the number of a closed one
        may soon be that of another file. `kill` closes them.
        """
        with self._reaping:
            if self._process.returncode is None:  # else its number may be another process's
                self._is_ended, self._reason = True, reason
                os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End the process and all it started; harmless when it is gone.

        Of the thread that asks it, or when none does.
        """
        self.end()
        with self._reaping:
            if self._process.returncode is not None:
                return
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process.wait(timeout=10.0)

    def last_lines(self) -> str:
        """Return the end of its standard error, as an error message quotes it."""
        lines = [line for line in self._last_lines if line.strip()]
        return " | ".join(lines[-KEPT_LINES:]) or "it wrote nothing"

    def _start_and_drain(self, command: list[str], environment: dict[str, str]) -> None:
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            self._error = error
            return
        finally:
            self._started.set()
        assert self._process.stderr is not None
        with open(self._process.stderr.fileno(), "rb", closefd=False) as stream:
            while line := stream.readline(LONGEST_LINE):
                text = line.decode("utf-8", "replace").rstrip()
                self._last_lines.append(text)
                logger.info("%s: %s", self._where, text)
        self._process.stderr.close()
        with contextlib.suppress(ChildProcessError):  # `kill` was first and has reaped it
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def _exit_status(self) -> int | None:
        """Return how it ended, a signal as its negative, and leave it to `kill` to reap it."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        ended = os.waitid(os.P_PID, self._process.pid, flags)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _send(self, body: bytes, deadline: float) -> None:
        view = memoryview(body)
        while view:
            self._wait(self._outbox, select.POLLOUT, deadline, "take its clips")
            try:
                view = view[os.write(self._outbox, view[:CHUNK]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise self._died() from error

    def _read(self, count: int, deadline: float) -> bytearray:
        body = bytearray()
        while len(body) < count:
            self._wait(self._inbox, select.POLLIN, deadline, "answer")
            try:
                chunk = os.read(self._inbox, min(CHUNK, count - len(body)))
            except BlockingIOError:
                continue
            if not chunk:
                raise self._died()
            body += chunk
        return body

    def _wait(self, descriptor: int, event: int, deadline: float, what: str) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000.0):
            raise RewardTimeoutError(
                f"{self._where}: its process did not {what} in time and is killed. "
                f"Its last lines: {self.last_lines()}"
            )

    def _died(self) -> RewardError:
        """Return the error of a child that closed its pipe."""
        if self._reason:
            return RewardError(f"{self._where}: its process was ended: {self._reason}")
        self._drain.join(timeout=2.0)
        return RewardError(
            f"{self._where}: its process died (exit status {self._exit_status()}). "
            f"Its last lines: {self.last_lines()}"
        )
