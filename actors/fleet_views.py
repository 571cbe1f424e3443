"""What a status, a timeline and the metrics show of the fleet."""

from __future__ import annotations

from rlvid.actors.answers import ActorView
from rlvid.actors.crew import Crew
from rlvid.actors.fleet_records import Actor, Publish, State


def gauges(crew: Crew, *, newest: Publish | None, num_wanted: int) -> dict[str, float]:
    """Return the present numbers under the names of the metrics table."""
    actors, states = crew.actors.values(), crew.states
    lags = [newest.version - actor.version for actor in actors if actor.is_open] if newest else []
    return {
        "rollout/actors/wanted": float(num_wanted),
        "rollout/actors/alive": float(states[State.READY]),
        "rollout/actors/pending": float(states[State.PENDING]),
        "rollout/actors/starting": float(states[State.LOADING] + states[State.JOINING]),
        "rollout/actors/draining": float(sum(actor.is_leaving for actor in actors)),
        "rollout/actors/busy": float(crew.num_busy),
        "rollout/queue/length": float(len(crew.queue)),
        "weights/version_lag/max": float(max(lags, default=0)),
    }


def view(actor: Actor, now: float) -> ActorView:
    """Return what an actor does."""
    group_id = actor.tasks[0].task.group_id if actor.tasks else ""
    state = "busy" if group_id else "idle"
    if actor.state is not State.READY:
        state = "starting"
    elif actor.is_leaving:
        state = "draining"
    return ActorView(
        actor_id=actor.actor_id,
        state=state,
        group_id=group_id,
        since_s=max(0.0, now - (actor.head_since if group_id else actor.since)),
        version=actor.version,
        is_open=actor.is_open,
        device=actor.device,
    )
