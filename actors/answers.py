"""What the rollout pool hands out, real or virtual: sampled groups and lost ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlvid.actors.fleet_records import Cause
from rlvid.records import GroupSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGroup:
    """A finished group: where it lies and what the driver may know of it."""

    group: Any
    """Object reference of the RolloutGroup, owned by the driver."""
    summary: GroupSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class LostGroup:
    """A group that did not come to its end; it must be leased anew, or given up."""

    group_id: str
    lease_id: str
    prompt_id: str
    actor_id: str
    """Who had it; "" where nobody had."""
    cause: Cause
    """Those of `Cause.blames_prompt` speak against the prompt when they come again."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorView:
    """One actor as a status or a timeline shows it."""

    actor_id: str
    state: str
    """starting, idle, busy or draining."""
    group_id: str
    """What it samples; "" for nothing."""
    since_s: float
    """Seconds since it began with that, or came into its state."""
    version: int
    is_open: bool
    """Whether it could work: it has loaded its model."""
    device: str = ""
    """Name of its GPU, "" without one or before it has loaded."""
