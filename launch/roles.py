"""Opens the processes a phase needs and closes them whatever happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlvid.actors.pool import RolloutPool
from rlvid.bell import Bell
from rlvid.config import LearnerConfig, Recipe
from rlvid.launch.groups import ScoredGroup
from rlvid.launch.ledger import Ledger, open_ledger
from rlvid.launch.local_disk import ledger_home
from rlvid.launch.loop.line import GroupLine, Issue
from rlvid.launch.loop.ports import BellClock
from rlvid.launch.loop.trainer import IDLE_S
from rlvid.launch.preemption import Preempted
from rlvid.models.policy import Policy
from rlvid.rewards.base import RewardError
from rlvid.rewards.pool import RewardPool


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRoles:
    """What it takes to sample and score: actors, reward pool, ledger."""

    rollouts: RolloutPool
    rewards: RewardPool
    ledger: Ledger
    line: GroupLine
    clock: BellClock
    bell: Bell
    start_deadline_s: float

    def wait_ready(self) -> None:
        """Return when every actor and scorer has loaded."""
        self.rewards.health_check(self.start_deadline_s)
        self.rollouts.wait_ready()

    def run_issues(self, issues: Sequence[Issue]) -> list[ScoredGroup]:
        """Have groups sampled and scored with nothing beside them, and return them in order."""
        for issue in issues:
            self.line.issue(issue)
        while any(self.line.in_flight()):
            if not self.line.poll():
                self.clock.wait(IDLE_S)
        return self.line.take([issue.task.group_id for issue in issues])


@contextmanager
def open_sampling(
    recipe: Recipe, policy: Policy, learner: LearnerConfig | None, ledger_path: Path
) -> Iterator[SamplingRoles]:
    """Start rollout actors and reward replicas together; `wait_ready` waits until all have loaded.

    Args:
        learner: what will publish to the actors, None when nobody will.
    """
    cluster = recipe.cluster
    bell = Bell()
    model = recipe.model.model_copy(update={"path": policy.model_path})
    rewards = RewardPool(recipe.rewards, model, cluster, bell=bell, run_folder=ledger_path.parent)
    is_crash = False
    rollouts = RolloutPool(
        policy,
        recipe.model,
        recipe.rollout,
        learner,
        num_threads=cluster.threads_per_role,
        start_deadline_s=cluster.start_deadline_s,
        weights_config=recipe.weights,
        bell=bell,
    )
    home = ExitStack()
    ledger = open_ledger(home.enter_context(ledger_home(ledger_path.parent)))
    try:
        rewards.start()
        rollouts.start()
        line = GroupLine(
            rollouts=rollouts,
            rewards=rewards,
            ledger=ledger,
            lease_s=recipe.rollout.deadline_s,
            max_deaths_per_prompt=recipe.rollout.max_deaths_per_prompt,
        )
        yield SamplingRoles(
            rollouts=rollouts,
            rewards=rewards,
            ledger=ledger,
            line=line,
            clock=BellClock(bell),
            bell=bell,
            start_deadline_s=cluster.start_deadline_s,
        )
    except Exception as error:
        # A driver that is started again finds its judges loaded; of what no start would mend, and
        # of a machine that is to be left, nothing stays.
        is_crash = not isinstance(error, ValueError | RewardError | Preempted)
        raise
    finally:
        rollouts.shutdown()
        rewards.shutdown(keeps_servers=is_crash)
        ledger.close()
        home.close()
