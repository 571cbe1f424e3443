"""Opens the processes a phase needs and closes them whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlvid.actors.pool import RolloutPool
from rlvid.config import LearnerConfig, Recipe
from rlvid.launch.ledger import Ledger, open_ledger
from rlvid.models.policy import Policy
from rlvid.rewards.pool import RewardPool


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRoles:
    """What it takes to sample and score: actors, reward pool, ledger."""

    rollouts: RolloutPool
    rewards: RewardPool
    ledger: Ledger


@contextmanager
def open_sampling(
    recipe: Recipe, policy: Policy, learner: LearnerConfig | None, ledger_path: Path
) -> Iterator[SamplingRoles]:
    """Start rollout actors and reward replicas together and wait until all have loaded.

    Args:
        learner: what will publish to the actors, None when nobody will.
    """
    cluster = recipe.cluster
    rewards = RewardPool(
        recipe.rewards, recipe.model.model_copy(update={"path": policy.model_path}), cluster
    )
    rollouts = RolloutPool(
        policy,
        recipe.model,
        recipe.rollout,
        learner,
        num_threads=cluster.threads_per_role,
        start_deadline_s=cluster.start_deadline_s,
    )
    ledger = open_ledger(ledger_path)
    try:
        rewards.start()
        rollouts.start()
        rewards.health_check(cluster.start_deadline_s)
        rollouts.wait_ready()
        yield SamplingRoles(rollouts=rollouts, rewards=rewards, ledger=ledger)
    finally:
        rollouts.shutdown()
        rewards.shutdown()
        ledger.close()
