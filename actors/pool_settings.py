"""What the actors' pool takes from the recipe: by what its fleet decides, and its gangs wait."""

from __future__ import annotations

from rlvid.actors.fleet_records import FleetSettings
from rlvid.actors.gang_peers import GangSettings
from rlvid.config import RolloutConfig, WeightsConfig

GANG_FRAC = 0.75
"""Of `rollout.stall_s`, in which a forward must be over: so an actor that waits for one of its own
processes says so before it is given up as stuck."""


def fleet_settings(
    config: RolloutConfig,
    weights: WeightsConfig,
    *,
    start_deadline_s: float,
    max_starting: int | None,
) -> FleetSettings:
    """Return what the fleet decides by; `max_starting` actors may start at once beside others."""
    return FleetSettings(
        deadline_s=config.deadline_s,
        stall_s=config.stall_s,
        heartbeat_s=config.heartbeat_s,
        start_deadline_s=start_deadline_s,
        weights_deadline_s=weights.deadline_s,
        crash_budget=config.crash_budget,
        crash_window_s=config.crash_window_s,
        autoscale=config.autoscale,
        max_starting=max_starting,
        node_group=config.node_group,
    )


def gang_settings(config: RolloutConfig, start_deadline_s: float) -> GangSettings | None:
    """Return how an actor's processes share clips; None where it is one process."""
    if config.sequence_parallel == 1:
        return None
    return GangSettings(
        num_ranks=config.sequence_parallel,
        start_deadline_s=start_deadline_s,
        deadline_s=GANG_FRAC * config.stall_s,
    )
