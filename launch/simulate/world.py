"""Everything of a virtual run that outlives its driver, and the lives of the driver in it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rlvid.launch.ledger import Ledger, open_ledger
from rlvid.launch.loop.ports import Rollouts
from rlvid.launch.simulate.clock import VirtualClock
from rlvid.launch.simulate.driver import DriverLostError, VirtualDriver, Watched
from rlvid.launch.simulate.failures import Injector
from rlvid.launch.simulate.keeper import VirtualKeeper
from rlvid.launch.simulate.plan import SimulationPlan
from rlvid.launch.simulate.rollouts import VirtualRollouts
from rlvid.launch.simulate.tally import Tally


def _as_it_is(rollouts: VirtualRollouts) -> Rollouts:
    return rollouts


class World:
    """A plan's clock, ledger, disk and luck."""

    def __init__(self, plan: SimulationPlan) -> None:
        self.plan = plan
        self.source = random.Random(plan.seed)
        self.injector = Injector(
            plan.failures,
            random.Random(self.source.random()),
            deadly_prompts=frozenset(f"prompt-{number}" for number in plan.deadly_prompts),
            dead_actors=plan.dead_actors,
        )
        self.clock = VirtualClock(patience_s=patience_s(plan))
        self.ledger: Ledger = open_ledger(Path(":memory:"))
        self.keeper = VirtualKeeper(keeps=lambda: plan.keeps_groups)
        self.tally, self.watched = Tally(), Watched()
        self.num_deaths = 0
        self._driver: VirtualDriver | None = None
        for at_s, num_actors in plan.scale.items():
            self.clock.at(at_s, partial(self._scale, num_actors))
        for at_s, seconds in plan.stops.items():
            self.clock.at(at_s, partial(self._stop, seconds))

    def run(
        self,
        *,
        wrap: Callable[[VirtualRollouts], Rollouts] = _as_it_is,
        on_driver: Callable[[VirtualDriver], None] = lambda driver: None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        """Train to the end; a driver that dies is started again from the last checkpoint.

        Args:
            wrap: puts something between loop and rollouts.
            on_driver: is shown each driver before it runs.

        Raises:
            StuckError: the loop does not go on.
            RolloutLostError: more actors are lost than the plan's budget allows.
        """
        checkpoint = None
        while True:
            driver = self._driver = VirtualDriver(self, checkpoint=checkpoint, wrap=wrap)
            on_driver(driver)
            try:
                driver.run()
            except DriverLostError:
                self.num_deaths += 1
                on_death()
                checkpoint = driver.checkpoint
                driver.close()
                self.clock.skip(self.plan.costs.driver_start_s.draw(self.source))
            else:
                driver.close()
                return

    def _scale(self, num_actors: int) -> None:
        if self._driver is not None:
            self._driver.rollouts.scale(num_actors)

    def _stop(self, seconds: float) -> None:
        if self._driver is not None:
            self._driver.stop(seconds)


def patience_s(plan: SimulationPlan) -> float:
    """Return how long a run may get nothing done before it is stuck: every wait has a deadline."""
    costs = plan.costs
    longest = [
        plan.deadline_s,
        plan.start_deadline_s,
        plan.reward_deadline_s,
        costs.learner_start_s.mean_s,
        costs.driver_start_s.mean_s,
        plan.groups_per_step * costs.train_s.mean_s + costs.update_s.mean_s,
    ]
    return 20.0 * sum(longest)
