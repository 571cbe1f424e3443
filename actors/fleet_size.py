"""Size of the fleet: how many actors are wanted, asked for or by load, who comes and who goes."""

from __future__ import annotations

import logging
import math

from rlvid.actors.autoscale import Load, wanted_actors
from rlvid.actors.crew import Crew
from rlvid.actors.feeder import Feeder
from rlvid.actors.fleet_metrics import Usage
from rlvid.actors.fleet_records import FleetSettings, Slot, State
from rlvid.actors.updater import Updater

logger = logging.getLogger(__name__)


class FleetSize:
    """Slots come and go until there are as many as wanted; who must go finishes its group first."""

    def __init__(
        self,
        settings: FleetSettings,
        crew: Crew,
        feeder: Feeder,
        updater: Updater,
        *,
        num_actors: int,
    ) -> None:
        self._settings = settings
        self._crew = crew
        self._feeder = feeder
        self._updater = updater
        self._scaled = 0.0
        self.num_wanted = num_actors
        self.learner_idle_frac = 0.0
        """The share of its time that the learner waits for groups, for the autoscaler."""

    def start(self, now: float) -> None:
        """Have the first actors started."""
        self._scaled = now
        self._crew.note_nobody(now)
        self.fit(now)

    def scale(self, num_actors: int, now: float) -> None:
        """See `Fleet.scale`."""
        if num_actors < 1:
            raise ValueError(f"rollout: scale to at least 1 actor, got {num_actors}")
        if num_actors != self.num_wanted:
            logger.info("scaling rollouts from=%d to=%d", self.num_wanted, num_actors)
        self._crew.spend(now)
        self.num_wanted = num_actors
        self._scaled = now
        self._crew.metrics.since_scaling = Usage()
        self.fit(now)

    def autoscale(self, now: float) -> None:
        """Scale by load where a cooldown is over."""
        config = self._settings.autoscale
        if config is None or now - self._scaled < config.cooldown_s:
            return
        self._crew.spend(now)
        usage = self._crew.metrics.since_scaling
        load = Load(
            num_actors=self.num_wanted,
            num_ready=self._crew.states[State.READY],
            queued_frac=usage.queued_frac,
            rollout_idle_frac=1.0 - usage.busy_frac,
            learner_idle_frac=self.learner_idle_frac,
        )
        self.scale(wanted_actors(config, load), now)

    def next_decision(self) -> float:
        """Return when `autoscale` decides next; infinite where nothing scales by itself."""
        config = self._settings.autoscale
        return math.inf if config is None else self._scaled + config.cooldown_s

    def fit(self, now: float) -> None:
        """End actors, and have others started at `poll`, so that there are as many as wanted."""
        crew = self._crew
        staying = [slot for slot in crew.slots.values() if slot.is_wanted]
        for slot in sorted(staying, key=crew.worth)[: max(0, len(staying) - self.num_wanted)]:
            self._leave(slot, now)
        for slot in crew.spare_slots(self.num_wanted - len(staying)):
            slot.is_wanted = True
            staying.append(slot)
            if slot.actor_id is not None:
                actor = crew.actors[slot.actor_id]
                actor.is_leaving = False
                self._updater.look_at(actor)
                crew.takers.update(actor)
        for slot in staying:
            if slot.is_wanted and slot.actor_id is None and slot.respawn_at is None:
                crew.wait_to_start(slot)

    def _leave(self, slot: Slot, now: float) -> None:
        slot.is_wanted, slot.respawn_at = False, None
        if slot.actor_id is None:
            return
        actor = self._crew.actors[slot.actor_id]
        actor.is_leaving = True
        self._crew.takers.update(actor)
        if not actor.tasks:
            self._crew.end(actor, now, is_stuck=False)
        for held in list(actor.tasks)[1:]:
            self._feeder.withdraw(actor, held)
