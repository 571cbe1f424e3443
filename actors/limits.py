"""How long an actor may take for what it does now."""

from __future__ import annotations

from rlvid.actors.fleet_records import Actor, FleetSettings, State

PENDING_S = 30.0
"""After which it is said aloud that there is no process for an actor yet."""


def limits(actor: Actor, settings: FleetSettings) -> list[tuple[float, str]]:
    """Return (when, what is wrong then); "" where it is only time to ask how it is."""
    if actor.state is State.PENDING:
        return [] if actor.is_reported else [(actor.since + PENDING_S, "")]
    stall_s, deadline_s = settings.stall_s, settings.deadline_s
    stall = f"rollout.stall_s, {stall_s:g} s"
    late = f"rollout.deadline_s, {deadline_s:g} s"
    found = [(actor.next_probe, "")]
    if actor.probe_sent is not None:
        found = [(actor.probe_sent + stall_s, f"did not answer for {stall}")]
    if actor.state is State.LOADING:  # beside which it answers
        seconds = settings.start_deadline_s
        text = f"did not load its policy in cluster.start_deadline_s, {seconds:g} s"
        return [*found, (actor.since + seconds, text)]
    if actor.tasks:
        found.append((actor.progressed + stall_s, f"did no denoising step for {stall}"))
        found.append((actor.head_since + deadline_s, f"overran {late}"))
    if actor.staging is not None:
        seconds = settings.weights_deadline_s
        text = f"took no weights for weights.deadline_s, {seconds:g} s"
        found.append((actor.staging_since + seconds, text))
    if actor.canary_since is not None and not actor.tasks:
        since = max(actor.canary_since, actor.head_since)
        found.append((since + deadline_s, f"gave no canary for {late}"))
    return found
