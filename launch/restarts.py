"""`rlvid run --restarts N`: a small parent that starts the driver again when it dies.

    exit 0, 2 (an error of the user's), 75 (asked to make room), Ctrl-C --> passed on
    anything else: a signal, a crash --> a pause, then again with --resume-if-exists, N times in all
    no sign of life (SIGSTOP, a frozen machine) --> killed, then the same

It imports nothing heavy, holds nothing and passes signals on, so there is little it could die of.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rlvid.launch.heartbeat import VARIABLE, Heartbeat
from rlvid.launch.preemption import EXIT_STATUS

FINAL = (0, 2, EXIT_STATUS, 128 + signal.SIGINT, -signal.SIGINT)
"""Exit statuses after which another start would be of no use, or is somebody else's to make."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
LIVED_S = 300.0
"""A driver that lived so long was no crash at the start: the pauses begin anew."""
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
LOOK_EVERY_S = 0.2
STALL_S = 60.0
"""A driver that runs and says nothing for so long is stopped, and is killed."""
PR_SET_PDEATHSIG = 1


def driver_command(recipe: str, overrides: Sequence[str], folder: Path, *flags: str) -> list[str]:
    """Return the command of one driver, without --restarts."""
    python = [sys.executable, "-m", "rlvid.launch.cli", "run"]
    return [*python, recipe, *overrides, "--run-folder", str(folder), *flags]


def run_with_restarts(
    first: Sequence[str], again: Sequence[str], *, restarts: int, stall_s: float = STALL_S
) -> int:
    """Run `first`, and `again` after each death, at most `restarts` times.

    Args:
        stall_s: seconds without a sign of life after which a driver is killed.

    Returns:
        The exit status for the shell; of the last driver, when the budget is spent.
    """
    return Restarter(restarts, stall_s).run(first, again)


class Restarter:
    """Holds the driver that runs and what signal came."""

    def __init__(self, restarts: int, stall_s: float) -> None:
        self._restarts = restarts
        self._stall_s = stall_s
        self._driver: subprocess.Popen[bytes] | None = None
        self._asked = 0
        """Signal that asked to end; 0 for none."""

    def run(self, first: Sequence[str], again: Sequence[str]) -> int:
        """See `run_with_restarts`; signals are given back at the end."""
        before = {number: signal.signal(number, self._pass_on) for number in PASSED_ON}
        before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
        try:
            return self._run(first, again)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self, first: Sequence[str], again: Sequence[str]) -> int:
        pause_s = FIRST_PAUSE_S
        for attempt in range(self._restarts + 1):
            started = time.monotonic()
            status = self._drive(again if attempt else first)
            lived_s = time.monotonic() - started
            if status in FINAL:
                return shell_status(status)
            if self._asked == signal.SIGINT:
                return 128 + signal.SIGINT
            if self._asked:
                # It was told to end and died of that instead of draining: queue it again.
                return EXIT_STATUS
            if attempt == self._restarts:
                break
            pause_s = FIRST_PAUSE_S if lived_s >= LIVED_S else pause_s
            say(
                f"the driver {describe(status)} after {lived_s:.0f} s; restart {attempt + 1} of "
                f"{self._restarts} in {pause_s:g} s"
            )
            if not self._sleep(pause_s):
                return EXIT_STATUS
            pause_s = min(2.0 * pause_s, LONGEST_PAUSE_S)
        say(f"the driver {describe(status)}; all {self._restarts} restarts are used up")
        return shell_status(status)

    def _drive(self, command: Sequence[str]) -> int:
        """Run one driver to its end and return how it ended, a signal as its negative."""
        heartbeat = Heartbeat()
        try:
            self._driver = subprocess.Popen(
                command,
                preexec_fn=drain_with_parent,
                env={**os.environ, VARIABLE: str(heartbeat.write_fd)},
                pass_fds=(heartbeat.write_fd,),
            )
            if self._asked in PASSED_ON:  # it came in between
                self._driver.send_signal(self._asked)
            return self._watch(self._driver, heartbeat)
        finally:
            heartbeat.close()

    def _watch(self, driver: subprocess.Popen[bytes], heartbeat: Heartbeat) -> int:
        while True:
            try:
                return driver.wait(timeout=LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                silence_s = heartbeat.silence_s()
            if silence_s > self._stall_s:
                say(f"no sign of life from the driver for {silence_s:.0f} s, killing it")
                driver.kill()  # a stopped process ends too

    def _sleep(self, seconds: float) -> bool:
        """Return False as soon as a signal came that asks to end."""
        end = time.monotonic() + seconds
        while not self._asked and time.monotonic() < end:
            time.sleep(min(LOOK_EVERY_S, seconds))
        return not self._asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Of Ctrl-C, which a terminal sends to the driver as well."""
        self._asked = number

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        if self._driver is not None and self._driver.returncode is None:
            self._driver.send_signal(number)


def drain_with_parent() -> None:
    """Called in the child: should this process be killed, the driver drains and ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def describe(status: int) -> str:
    """Return "was killed by SIGKILL" or "ended with status 1"."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def shell_status(status: int) -> int:
    """Return the status as a shell tells it: 128 and the number of the signal."""
    return 128 - status if status < 0 else status


def say(line: str) -> None:
    os.write(2, f"rlvid: {line}\n".encode())
