"""What a run is doing now: <run>/status.json, written by the driver about once a second.

It is also the driver's sign of life. `rlvid top` shows it; `rlvid scale` looks at its age.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rlvid.launch.control.private_files import read_private, write_private

logger = logging.getLogger(__name__)

STATUS_FILE = "status.json"
PERIOD_S = 1.0
STALE_S = 15.0
"""A driver that has not written for so long is taken for dead."""
MAX_ROWS = 64
"""Actors that are listed one by one; the counts by state are of all."""
MAX_EVENTS = 20
OVER = ("done", "stopped", "failed")
"""States in which nobody listens any more."""

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorStatus:
    """One rollout actor."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    actor_id: str
    state: str
    """busy, idle, starting or draining."""
    doing: str = ""
    """What it works on or waits for, e.g. "000012-0003" or "weights of version 12"."""
    since_s: float = 0.0
    """Seconds in this state."""
    version: int | None = None
    """Policy version it holds; None or -1 for one that has none yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerStatus:
    """One scorer of the reward pool."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    replicas: int
    queue: int
    """Clips that wait."""
    p95_s: float | None = None
    missing_frac: float | None = None
    errors: int = 0
    """Of the run so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerStatus:
    """The learner gang."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    state: str
    """busy, idle or starting."""
    doing: str = ""
    """What it works on or waits for, e.g. "chunk 2 of 4" or "scores of 000012-0003"."""
    since_s: float = 0.0
    num_ranks: int = 1
    idle_frac: float | None = None
    """Of the last step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """Something that happened, for the list at the bottom."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    time_s: float
    """Unix time."""
    kind: str
    """lost, restart, scale, alarm, checkpoint, ..."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """All of it; the loop fills it, `to_json` and `from_json` are each other's inverse."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    run: str
    """Name of the recipe."""
    phase: str
    state: str
    """starting, running, draining, evaluating, stopped, done or failed."""
    step: int
    """Optimiser steps done."""
    num_steps: int
    version: int
    """Newest policy version published."""
    max_staleness: int = 0
    groups: Mapping[str, int] = field(default_factory=dict)
    """State in the ledger to groups."""
    actors: tuple[ActorStatus, ...] = ()
    """The first `MAX_ROWS` of them."""
    actor_states: Mapping[str, int] = field(default_factory=dict)
    """State to actors, of all."""
    actors_wanted: int | None = None
    """What the run was last scaled to."""
    scorers: tuple[ScorerStatus, ...] = ()
    learner: LearnerStatus | None = None
    staleness: Mapping[int, int] = field(default_factory=dict)
    """Versions behind to groups consumed, of the last steps."""
    rates: Mapping[str, float | None] = field(default_factory=dict)
    """Names of the metrics table to their last values: idle, overlap, mfu, ft, waste."""
    videos_per_s: float | None = None
    step_s: float | None = None
    """Wall time of a step, of late."""
    reward_mean: float | None = None
    rewards: tuple[float | None, ...] = ()
    """Mean rewards of the last steps, oldest first, for a small chart."""
    heldout_reward: float | None = None
    eta_s: float | None = None
    events: tuple[RunEvent, ...] = ()
    """The last `MAX_EVENTS`, oldest first."""
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    started_s: float = 0.0
    """Unix time of the driver's start."""
    time_s: float = field(default_factory=time.time)
    """Unix time of writing."""

    def to_json(self) -> str:
        return _STATUS.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> RunStatus:
        """Return the status in a file's text.

        Raises:
            ValueError: it is none, or one of another version of rlvid.
        """
        try:
            return _STATUS.validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "status"
            raise ValueError(
                f"{STATUS_FILE}: {where}: {first['msg']}; it is of another version of rlvid, use "
                "the one that runs the run"
            ) from error


_STATUS: TypeAdapter[RunStatus] = TypeAdapter(RunStatus)


class StatusWriter:
    """Writes status.json no more often than every `PERIOD_S`."""

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / STATUS_FILE
        self._next_s = 0.0

    def is_due(self, now_s: float) -> bool:
        """Return whether it is worth while to gather a status now; `now_s` of any one clock."""
        return now_s >= self._next_s

    def write(self, status: RunStatus, now_s: float) -> None:
        """Replace the file; a disk that refuses is a warning, since this is a view of the run."""
        self._next_s = now_s + PERIOD_S
        try:
            write_private(self.path, status.to_json())
        except OSError as error:
            logger.warning("%s: not written: %s", self.path, error.strerror)


def read_status(run_folder: Path) -> RunStatus:
    """Return the last status of the run.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    try:
        return RunStatus.from_json(read_private(run_folder / STATUS_FILE))
    except FileNotFoundError as error:
        raise ValueError(
            f"run folder {str(run_folder)!r}: no {STATUS_FILE} in it, so its loop has not started; "
            "name the folder that `rlvid run` printed, or wait until the roles are up"
        ) from error


def live_driver(run_folder: Path) -> RunStatus | None:
    """Return the status of another driver that still works in this folder, else None.

    A driver of this host is asked for by its process id, so a restart right after a crash is not
    held up by a fresh heartbeat.
    """
    try:
        status = read_status(run_folder)
    except ValueError:
        return None
    is_over = status.state in OVER or time.time() - status.time_s > STALE_S
    if is_over or (status.host, status.pid) == (socket.gethostname(), os.getpid()):
        return None
    if status.host == socket.gethostname() and not _is_alive(status.pid):
        return None
    return status


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
