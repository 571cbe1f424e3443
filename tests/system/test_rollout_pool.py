"""The rollout pool on real Ray actors: what goes wrong in an actor reaches the driver readable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlvid.actors.pool import RolloutPool
from rlvid.config import Recipe
from rlvid.launch.cluster import open_cluster
from rlvid.models.policy import Policy

TINY = Policy(model_path="tiny")


@pytest.fixture(scope="module")
def recipe() -> Iterator[Recipe]:
    """A recipe of one actor, and Ray for it."""
    made = Recipe.model_validate({"name": "pool"})
    with open_cluster(made):
        yield made


def _pool(recipe: Recipe, policy: Policy) -> RolloutPool:
    pool = RolloutPool(
        policy, recipe.model, recipe.rollout, None, num_threads=1, start_deadline_s=120.0
    )
    pool.start()
    return pool


@pytest.mark.slow
def test_policy_that_cannot_be_loaded_is_the_users_one_line(recipe: Recipe, tmp_path: Path) -> None:
    """Raised in a constructor it would arrive as Ray's report of a dead actor, traceback first."""
    pool = _pool(recipe, Policy(model_path="tiny", lora_path=str(tmp_path / "gone")))
    try:
        with pytest.raises(ValueError, match="policy: no LoRA folder at") as caught:
            pool.wait_ready()
        assert "\n" not in str(caught.value)
    finally:
        pool.shutdown()


@pytest.mark.slow
def test_actor_that_died_idle_is_replaced_with_the_new_policy(recipe: Recipe) -> None:
    """The evaluation changes policies between two rounds of groups, when nobody is watched."""
    pool = _pool(recipe, TINY)
    try:
        pool.wait_ready()
        pool.kill_actor(0)
        pool.use_policy(TINY, 120.0)
        assert (pool.num_lost, pool.actor_ids) == (1, ("actor-0.1",))
    finally:
        pool.shutdown()
