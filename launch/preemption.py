"""Being asked to make room: a signal or a notice ends the run in good order, to be queued again.

    SIGTERM, SIGUSR1, a notice file --> `is_requested` --> admission stops, what flies drains, a
    checkpoint is written --> Preempted --> exit status 75, on which launchers queue the run again

The handler itself only notes what came while a loop drains by itself (`deferred`); anywhere else it
raises Preempted there and then, since there is nothing to drain and what is on disk is whole. A
second SIGTERM ends the process at once.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: started again with --resume-if-exists, the run goes on."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
NOTICE_VARIABLE = "RLVID_PREEMPTION_FILE"
"""Names the file whose appearance is a notice: a spot node's daemon or a hook touches it."""
LOOK_EVERY_S = 1.0
"""Between two looks for the notice file, which may lie on a network's disk."""
SAME_REQUEST_S = 2.0
"""A SIGTERM so soon after the first is the same one: sent to a process and to its group as well."""


class Preempted(RuntimeError):  # noqa: N818, it is nobody's error
    """The run was asked to make room and has written what a resume needs."""


class Preemption:
    """Listens for the request between `install` and `restore`."""

    def __init__(self, grace_s: float, *, notice_file: str | Path | None = None) -> None:
        """Listen for nothing yet.

        Args:
            grace_s: seconds from the request until the process may be killed.
            notice_file: None takes what the variable RLVID_PREEMPTION_FILE names, if it is set.
        """
        self._grace_s = grace_s
        named = notice_file or os.environ.get(NOTICE_VARIABLE) or None
        self._notice_file = None if named is None else Path(named)
        self._looked = float("-inf")
        self._on_request: Callable[[], None] | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._is_deferred = False
        self._reason = ""
        self._requested_at = 0.0

    def install(self) -> None:
        """Take over SIGTERM and SIGUSR1; harmless when it was done before.

        Raises:
            ValueError: it is not the main thread, the only one where Python takes signals.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ValueError(
                f"preemption: install() was called in thread {threading.current_thread().name!r}: "
                "expected the main thread, since Python delivers signals nowhere else. Call it "
                "there, before other threads take over."
            )
        for number in SIGNALS:
            handler = signal.signal(number, self._on_signal)
            self._before.setdefault(number, signal.SIG_DFL if handler is None else handler)

    def restore(self) -> None:
        """Give the signals back to whoever had them before the first `install`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def request(self, reason: str) -> None:
        """Raise the flag, as a hook does that learns of it otherwise; the first reason stays."""
        if self._reason:
            return
        self._requested_at = time.monotonic()
        self._reason = reason
        if self._on_request is not None:
            self._on_request()

    @contextmanager
    def deferred(self, on_request: Callable[[], None] | None = None) -> Iterator[None]:
        """Within the block a signal only raises the flag: the block looks at it and drains.

        Args:
            on_request: called when the flag goes up, e.g. `bell.ring`. It runs in the signal
                handler, in the middle of anything the main thread does: no lock but a re-entrant
                one.

        Raises:
            Preempted: the block ended as if nothing had come.
        """
        self._is_deferred, self._on_request = True, on_request
        try:
            yield
        finally:
            self._is_deferred, self._on_request = False, None
        if self._reason:
            self.raise_preempted("what was under way is finished")

    @property
    def is_requested(self) -> bool:
        """True from the first signal or notice on; the loop asks at every turn."""
        if not self._reason and self._notice_file is not None:
            now = time.monotonic()
            if now - self._looked >= LOOK_EVERY_S:
                self._looked = now
                if self._notice_file.exists():
                    self.request(f"a notice in {self._notice_file}")
        return bool(self._reason)

    @property
    def reason(self) -> str:
        """What came; "" when nothing did."""
        return self._reason

    @property
    def seconds_left(self) -> float:
        """Seconds until the process may be killed; infinite when nothing came, 0 when over."""
        if not self._reason:
            return float("inf")
        return max(0.0, self._requested_at + self._grace_s - time.monotonic())

    def raise_preempted(self, what_is_saved: str) -> NoReturn:
        """End the run once everything is on disk; the words go into the one line the user sees.

        Raises:
            Preempted: always.
        """
        raise Preempted(f"asked to make room ({self._reason}): {what_is_saved}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._reason:
            is_again = time.monotonic() - self._requested_at > SAME_REQUEST_S
            if number == signal.SIGTERM and is_again:
                # No exception, which would start the orderly end that is too slow for whoever
                # sends it twice. Guards end what this process started.
                os.write(2, b"rlvid: SIGTERM again, ends at once\n")
                os._exit(EXIT_STATUS)
            return
        self.request(name)
        if not self._is_deferred:
            self.raise_preempted("there was nothing to drain")


@contextmanager
def open_preemption(
    grace_s: float, *, notice_file: str | Path | None = None
) -> Iterator[Preemption]:
    """Listen for the length of the block; beside the main thread for the notice file only."""
    preemption = Preemption(grace_s, notice_file=notice_file)
    if threading.current_thread() is not threading.main_thread():
        logger.warning("this run is not in the main thread: SIGTERM does not drain it")
        yield preemption
        return
    preemption.install()
    try:
        yield preemption
    finally:
        preemption.restore()
