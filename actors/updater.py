"""Weights of the fleet: who takes which publish when, and who has proved to sample with it."""

from __future__ import annotations

import logging

from rlvid.actors.crew import Crew
from rlvid.actors.feeder import Feeder
from rlvid.actors.fleet_records import (
    MAX_REFUSALS,
    Actor,
    AskCanary,
    Publish,
    RolloutLostError,
    Stage,
    State,
)

logger = logging.getLogger(__name__)


class Updater:
    """Every open actor that stays comes to the newest publish; newest wins."""

    def __init__(self, crew: Crew, feeder: Feeder) -> None:
        self._crew = crew
        self._feeder = feeder
        self._behind: dict[str, None] = {}
        """Actors to look at for weights they lack."""
        self.newest: Publish | None = None
        self.canary: Publish | None = None
        """The publish that the learner's velocity belongs to."""

    def forget(self) -> None:
        """There are only files from now on."""
        self.newest = self.canary = None
        self._behind.clear()
        crew = self._crew
        crew.actions = [one for one in crew.actions if not isinstance(one, AskCanary | Stage)]

    def publish(self, publish: Publish) -> None:
        """See `Fleet.publish`."""
        if self.newest is not None and publish <= self.newest:
            raise ValueError(
                f"rollout: publish {publish} is not newer than {self.newest}; "
                "publish a higher version, or count the learner's restart in `incarnation`"
            )
        self.newest = publish
        for actor in self._crew.actors.values():
            actor.num_refusals = 0
            self.look_at(actor)

    def look_at(self, actor: Actor) -> None:
        """Have the actor brought to the newest weights if it lacks them."""
        self._behind[actor.actor_id] = None

    def stage(self, now: float) -> None:
        """Send weights to who lacks them, unless tasks are left that need older ones."""
        newest, allowed = self.newest, self._feeder.newest_allowed
        if newest is None or (allowed is not None and allowed < newest.version):
            return
        for actor_id in self._behind:
            actor = self._crew.actors.get(actor_id)
            if actor is None or not actor.is_open or actor.is_leaving:
                continue
            waits_for_canary = actor.state is State.JOINING and actor.canary_since is not None
            if actor.staging is not None or waits_for_canary:
                continue
            if actor.held is not None and actor.held >= newest:
                continue
            actor.staging, actor.staging_since = newest, now
            self._crew.actions.append(Stage(actor_id=actor_id, publish=newest))
            self._crew.arm(actor)
        self._behind.clear()

    def staged(self, actor: Actor, publish: Publish, now: float) -> None:
        """See `Fleet.staged`."""
        if actor.staging != publish:
            return
        actor.staging, actor.held, actor.num_refusals = None, publish, 0
        self._crew.metrics.has_staged = True
        self.look_at(actor)
        self.join(actor, now)

    def refused(self, actor: Actor, publish: Publish, reason: str) -> str:
        """Note that a publish did not verify; return why to give the actor up, "" to try again.

        Raises:
            RolloutLostError: no actor ever took any publish.
        """
        if actor.staging != publish:
            return ""
        self._crew.metrics.counts["weights/rejected/count"] += 1
        logger.warning(
            "refused publish actor=%s version=%d reason=%r",
            actor.actor_id,
            publish.version,
            reason,
        )
        actor.staging = None
        actor.num_refusals += 1
        if actor.num_refusals < MAX_REFUSALS:
            self.look_at(actor)
            return ""
        times = f"refused weights {publish.version} {actor.num_refusals} times: {reason}"
        if not self._crew.metrics.has_staged:
            raise RolloutLostError(f"{actor.actor_id}: {times}")
        return times

    def unreachable(self, actor: Actor, publish: Publish, reason: str) -> None:
        """See `Fleet.stage_unreachable`."""
        if actor.staging != publish:
            return
        self._crew.metrics.counts["weights/unreachable/count"] += 1
        logger.warning(
            "publish out of reach actor=%s version=%d reason=%r",
            actor.actor_id,
            publish.version,
            reason,
        )
        actor.staging = None

    def set_canary(self, publish: Publish, now: float) -> None:
        """See `Fleet.set_canary`."""
        self.canary = publish
        for actor in self._crew.actors.values():
            self._ask_canary(actor, now)

    def canary_answered(
        self, actor: Actor, publish: Publish | None, difference: str | None, now: float
    ) -> str:
        """Take an answer; return why to give the actor up, "" for nothing.

        Raises:
            RolloutLostError: it differs and no other actor's ever fitted.
        """
        if actor.canary_since is None:
            return ""
        actor.canary_since = None
        if publish == self.canary and difference is not None:
            if not self._crew.metrics.has_passed:
                raise RolloutLostError(difference)
            return difference
        if publish == self.canary:
            actor.checked = publish
            self._crew.metrics.has_passed = True
            self._crew.metrics.counts["rollout/canary/passed"] += 1
        self.join(actor, now)
        return ""

    def join(self, actor: Actor, now: float) -> None:
        """Have an open actor work once it has its weights, and the canary has been asked."""
        crew = self._crew
        self._ask_canary(actor, now)
        if actor.state is State.JOINING:
            lacks_weights = self.newest is not None and actor.held is None
            if lacks_weights or actor.canary_since is not None:
                crew.arm(actor)
                return
            if self.canary is not None and actor.checked is None:
                crew.metrics.counts["rollout/canary/unchecked"] += 1
            crew.enter(actor, State.READY, now)
            self.look_at(actor)
        crew.takers.update(actor)
        crew.arm(actor)

    def _ask_canary(self, actor: Actor, now: float) -> None:
        is_due = self.canary is not None and actor.held == self.canary != actor.checked
        if actor.is_open and is_due and actor.canary_since is None and not actor.is_leaving:
            actor.canary_since = now
            self._crew.actions.append(AskCanary(actor_id=actor.actor_id))
            self._crew.arm(actor)
