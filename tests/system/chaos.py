"""Kills and stops processes of a live run, one after another, and witnesses that it recovers.

Works from outside, as trouble does: processes are found in the driver's process tree by the titles
Ray gives them, and hit with SIGKILL or SIGSTOP. A recovery is witnessed when the process that was
hit is gone, its role has as many living processes as before, none of them stopped, and the run has
finished a step since. The driver itself is restarted by `rlvid run --restarts`.
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

TITLES = {
    "rollout": "ray::RolloutActor",
    "reward": "ray::RewardActor",
    "learner": "ray::LearnerActor",
}
"""Role to the beginning of its processes' titles."""
KINDS: tuple[tuple[str, signal.Signals], ...] = tuple(
    (role, number) for role in (*TITLES, "driver") for number in (signal.SIGKILL, signal.SIGSTOP)
)
POLL_S = 0.25


@dataclass(slots=True)
class Blow:
    """One process that was hit."""

    role: str
    signal: str
    pid: int
    at_s: float
    """Since the run began."""
    step: int
    """Steps done then."""
    recovered_s: float | None = None
    """Seconds until the recovery was witnessed."""


class Chaos:
    """A run under fire."""

    def __init__(self, command: Sequence[str], run: Path, *, seed: int) -> None:
        """Start the run; `command` is `rlvid run ... --restarts N`."""
        self._run = run
        self._draw = random.Random(seed)
        self._started = time.monotonic()
        self._log = (run.parent / f"{run.name}.log").open("wb")
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        self.blows: list[Blow] = []

    def strike(self, kinds: Sequence[tuple[str, signal.Signals]], *, recover_s: float) -> None:
        """Hit each kind once, in order; wait for each recovery, at most `recover_s`.

        Begins when the run has done a step: what is stopped while it starts costs the deadline of
        the start, minutes in which nothing else could be shown. Ends early when the run does.
        """
        self._wait(lambda: self.steps_done > 0, recover_s)
        for role, number in kinds:
            if not self._wait(partial(self._is_there, role), recover_s):
                return
            self._pause()
            before = len(self._living(role))
            blow = self._hit(role, number)
            if blow is None:
                continue
            self.blows.append(blow)
            hit_at = time.monotonic()

            if self._wait(partial(self._has_recovered, blow, before), recover_s):
                blow.recovered_s = round(time.monotonic() - hit_at, 2)

    def finish(self, timeout_s: float) -> int:
        """Return the run's exit status."""
        try:
            return self.process.wait(timeout=timeout_s)
        finally:
            self._log.close()

    def stop(self) -> None:
        """End the run, whatever state it is in."""
        if self.process.poll() is None:
            for process in [*self._tree(), psutil.Process(self.process.pid)]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self.process.wait(timeout=30)
        self._log.close()

    @property
    def steps_done(self) -> int:
        """Steps in the metrics file, replayed ones counted once."""
        try:
            lines = (self._run / "metrics.jsonl").read_text().splitlines()
        except OSError:
            return 0
        return sum('"00_grpo"' in line for line in lines)

    def summary(self) -> dict[str, Any]:
        """Return the blows, and witnessed recoveries by kind."""
        hits = Counter(f"{blow.role} {blow.signal}" for blow in self.blows)
        recovered = Counter(
            f"{blow.role} {blow.signal}" for blow in self.blows if blow.recovered_s is not None
        )
        return {
            "blows": len(self.blows),
            "by_kind": {
                kind: {"hit": hits[kind], "recovered": recovered[kind]} for kind in sorted(hits)
            },
            "trials": [asdict(blow) for blow in self.blows],
        }

    # Inside

    def _hit(self, role: str, number: signal.Signals) -> Blow | None:
        living = self._living(role)
        if not living:
            return None
        process = self._draw.choice(living)
        step = self.steps_done
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            return Blow(
                role=role,
                signal=number.name,
                pid=process.pid,
                at_s=round(time.monotonic() - self._started, 1),
                step=step,
            )
        return None

    def _is_there(self, role: str) -> bool:
        return bool(self._living(role))

    def _has_recovered(self, blow: Blow, before: int) -> bool:
        if self.steps_done <= blow.step:
            return False
        if psutil.pid_exists(blow.pid) and _is_living_pid(blow.pid):
            return False
        return len(self._living(blow.role)) >= before

    def _living(self, role: str) -> list[psutil.Process]:
        """Return the role's processes that run, in order of their ids."""
        if role == "driver":
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(self.process.pid).children()
                return [child for child in children if _is_driver(child)]
            return []
        found = [process for process in self._tree() if _has_title(process, TITLES[role])]
        return sorted(found, key=lambda process: process.pid)

    def _tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
            return found
        return []

    def _pause(self) -> None:
        """Let the run go on for a moment, so that blows fall anywhere in a step."""
        time.sleep(self._draw.uniform(0.2, 2.0))

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Return whether it came true in time; False as soon as the run has ended."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and self.process.poll() is None:
            if condition():
                return True
            time.sleep(POLL_S)
        return False


def schedule(num_blows: int, *, seed: int) -> list[tuple[str, signal.Signals]]:
    """Return so many kinds in random order, every kind at least `num_blows // len(KINDS)` times."""
    draw = random.Random(seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(num_blows)]
    draw.shuffle(kinds)
    return kinds


def run_command(
    recipe: Path, run: Path, *overrides: str, restarts: int, stall_s: float
) -> list[str]:
    """Return the command of a run that is started again when its driver dies."""
    python = [sys.executable, "-m", "rlvid.launch.cli", "run"]
    ends = ["--run-folder", str(run), "--restarts", str(restarts), "--stall", str(stall_s)]
    return [*python, str(recipe), *overrides, *ends]


def _is_driver(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return "rlvid.launch.cli" in words and process.status() not in _DEAD
    return False


def _has_title(process: psutil.Process, title: str) -> bool:
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return bool(words) and words[0].startswith(title) and process.status() not in _DEAD
    return False


def _is_living_pid(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


_DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED, psutil.STATUS_DEAD)
