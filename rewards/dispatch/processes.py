"""What the dispatcher knows of the pool's processes, and what it wants done with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlvid.rewards.breaker import CircuitBreaker
from rlvid.rewards.dispatch.autoscale import Autoscaler
from rlvid.rewards.dispatch.lane import QueueItem
from rlvid.rewards.scoring import GroupScores, ScoreItem

DECODER = ""
"""Service name of the decoder; labels of scorers are never empty."""
MAX_CALLS = 2
"""Calls a process holds: one it works on and one that waits there, which hides the way back."""


@dataclass(slots=True, eq=False)
class Call:
    """One batch at one process."""

    call_id: int
    process_id: int
    service: str
    items: tuple[QueueItem, ...]
    sent: float
    jitter: float
    """In [0, 1], of the pause before its clips are tried again."""


@dataclass(slots=True, eq=False)
class Process:
    """One actor. A replacement is another process, with the breakers of the one before."""

    process_id: int
    host: Host
    started: float
    """When it was spawned, or when its servers answered."""
    breakers: dict[str, CircuitBreaker]
    devices: Mapping[str, str] = field(default_factory=dict)
    """Service to the name of its GPU, "" without one; empty until it is open."""
    is_open: bool = False
    waits_for_servers: bool = False
    """Its scorers are loaded; the servers they ask do not answer yet, and have their own time."""
    is_leaving: bool = False
    """Takes no more calls and ends when it has none."""
    calls: deque[Call] = field(default_factory=deque)
    head_since: float = 0.0
    """When it began with the first of its calls."""
    probe_sent: float | None = None
    """When it was asked whether it lives; None when it owes no answer."""
    answered: float | None = None
    """When it last said so."""

    @property
    def is_usable(self) -> bool:
        return self.is_open and not self.is_leaving


@dataclass(slots=True, eq=False)
class Host:
    """A kind of process: the services that live in it, its resources and how many there are."""

    services: tuple[str, ...]
    num_cpus: float
    num_gpus: float
    runtime_env: Mapping[str, Any]
    spread: bool
    """Over the nodes, so that clips are decoded near where they were sampled."""
    autoscaler: Autoscaler
    node_group: str | None = None
    """Whose nodes it is on (`rlvid.config.node_group`); None is any node."""
    has_opened: bool = False
    is_scaled: bool = False
    """Its number was set by hand, which what the scorer declares does not undo."""
    failures_in_a_row: int = 0
    """Processes lost since the last call that came to an end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """Start a process."""

    process_id: int
    host: Host


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """End a process, whatever it does."""

    process_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Ask a process whether it lives."""

    process_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """Have a group decoded."""

    call: Call
    payload: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBatch:
    """Have clips scored."""

    call: Call
    items: tuple[ScoreItem, ...]
    frames: tuple[Any, ...]
    """References to the arrays the items lie in."""
    fps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Hand out a group: its scores, or its clips where no scores were asked for."""

    ticket: int
    scores: GroupScores
    frames: Any


Action = Spawn | Kill | Probe | Decode | ScoreBatch | Finished
