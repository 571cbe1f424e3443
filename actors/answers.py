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
