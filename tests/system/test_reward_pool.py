from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from rlvid.config import ClusterConfig, ModelConfig, RewardsConfig, ScorerConfig
from rlvid.rewards.base import RewardError
from rlvid.rewards.pool import RewardPool, RewardTimeoutError
from rlvid.testing import tiny_model
from tests.unit.rewards.scorers import group

pytestmark = pytest.mark.slow

HERE = "tests.system.reward_faults"
CLUSTER = ClusterConfig(start_deadline_s=120.0)
GROUP_SIZE = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A random tiny model in a folder, as a run would load it."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save(str(folder))
    return ModelConfig(path=str(folder), num_frames=9, height=16, width=16)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=200 * 2**20)
    yield
    ray.shutdown()


def open_pool(
    model: ModelConfig, *scorers: ScorerConfig, num_replicas: int = 2, deadline_s: float = 60.0
) -> RewardPool:
    pool = RewardPool(
        RewardsConfig(
            scorers=scorers or (ScorerConfig(use="realism"),),
            num_replicas=num_replicas,
            deadline_s=deadline_s,
        ),
        model,
        CLUSTER,
    )
    pool.start()
    return pool


def sampled(count: int) -> list[ray.ObjectRef]:
    return [
        ray.put(group(f"000000-{n:02d}", GROUP_SIZE, latent_shape=(4, 3, 2, 2)))
        for n in range(count)
    ]


def test_every_group_is_scored_in_order(model: ModelConfig) -> None:
    pool = open_pool(model)
    try:
        pool.health_check(120.0)
        answers = pool.score(sampled(6))
        assert [a.scores[0].group_id for a in answers] == [f"000000-{n:02d}" for n in range(6)]
        assert all(len(a.scores) == GROUP_SIZE for a in answers)
        assert all(score.value is not None for a in answers for score in a.scores)
    finally:
        pool.shutdown()


def test_killing_a_replica_in_the_middle_loses_no_group(model: ModelConfig, tmp_path: Path) -> None:
    """The driver owns groups and scores; a replica holds nothing that cannot be done again."""
    slow = ScorerConfig(use=f"{HERE}:Slow", config={"seconds": 0.5, "pid_folder": str(tmp_path)})
    pool = open_pool(model, slow)
    try:
        pool.health_check(120.0)
        tickets = [pool.submit(ref) for ref in sampled(6)]
        answers = dict(pool.collect(30.0))
        pid = int(next(tmp_path.iterdir()).name)
        os.kill(pid, signal.SIGKILL)
        while len(answers) < len(tickets):
            before = len(answers)
            answers.update(pool.collect(60.0))
            assert len(answers) > before, "nothing was scored in a minute"
        group_ids = sorted(answers[ticket].scores[0].group_id for ticket in tickets)
        assert group_ids == [f"000000-{n:02d}" for n in range(6)]
        assert pool.num_replaced == 1
    finally:
        pool.shutdown()


def test_a_stopped_replica_costs_one_deadline(model: ModelConfig, tmp_path: Path) -> None:
    """Ray never notices a stopped process; without a deadline of ours the run would hang."""
    slow = ScorerConfig(use=f"{HERE}:Slow", config={"seconds": 0.2, "pid_folder": str(tmp_path)})
    pool = open_pool(model, slow, num_replicas=1, deadline_s=4.0)
    try:
        pool.health_check(120.0)
        pool.score(sampled(1))
        os.kill(int(next(tmp_path.iterdir()).name), signal.SIGSTOP)
        answers = pool.score(sampled(3))
        assert len(answers) == 3
        assert pool.num_replaced == 1
    finally:
        pool.shutdown()


def test_a_group_that_crashes_every_replica_is_blamed(model: ModelConfig) -> None:
    """Replacing forever would hide a scorer that takes its process down."""
    pool = open_pool(model, ScorerConfig(use=f"{HERE}:Crashes"), num_replicas=1)
    try:
        pool.health_check(120.0)
        started = time.monotonic()
        with pytest.raises(RewardError, match="one group failed 3 replicas in turn"):
            pool.score(sampled(1))
        assert time.monotonic() - started < 120.0
    finally:
        pool.shutdown()


def test_a_broken_contract_reaches_the_driver_in_plain_words(model: ModelConfig) -> None:
    pool = open_pool(
        model, ScorerConfig(use="tests.unit.rewards.scorers:OneForAll", name="mine"), num_replicas=1
    )
    try:
        pool.health_check(120.0)
        with pytest.raises(RewardError, match=r"^rewards\[0\] 'mine': returned shape \(4,\) for 3"):
            pool.score(sampled(1))
    finally:
        pool.shutdown()


def test_a_bad_scorer_is_found_by_the_health_check(model: ModelConfig) -> None:
    pool = open_pool(model, ScorerConfig(use="phisics"), num_replicas=1)
    try:
        with pytest.raises(ValueError, match=r"rewards\.scorers\.0\.use.*did you mean 'physics'"):
            pool.health_check(120.0)
    finally:
        pool.shutdown()


def test_replicas_that_find_no_room_are_an_error_and_no_hang(model: ModelConfig) -> None:
    crowded = RewardPool(RewardsConfig(num_replicas=1, num_cpus=64.0), model, CLUSTER)
    crowded.start()
    try:
        with pytest.raises(RewardTimeoutError, match="1 of 1 replicas did not open within 3 s"):
            crowded.health_check(3.0)
    finally:
        crowded.shutdown()
