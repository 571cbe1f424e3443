"""The rollout pool on real Ray actors: losses, stopped processes, weights and scaling."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from rlvid.actors.fleet_records import Cause
from rlvid.actors.pool import LostGroup, RolloutPool, SampledGroup
from rlvid.bell import Bell
from rlvid.config import Recipe
from rlvid.launch.cluster import open_cluster
from rlvid.launch.groups import training_task
from rlvid.models.policy import Policy
from rlvid.records import GroupTask, Prompt, RolloutGroup, WeightsManifest
from tests.unit.actors.worker_weights import open_worker, published
from tests.unit.actors.worker_weights import task as tiny_task

TINY = Policy(model_path="tiny")
SLEEPING: dict[str, Any] = {
    "worker": "sleeping",
    "worker_options": {"sample_s": 0.3},
    "num_cpus": 0.1,
    "num_denoising_steps": 3,
    "heartbeat_s": 0.2,
    "stall_s": 3.0,
}
SOON_S = 90.0


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray for a recipe of one actor; sleeping ones take a tenth of a CPU."""
    with open_cluster(Recipe.model_validate({"name": "pool"})):
        yield


@contextmanager
def opened(policy: Policy = TINY, bell: Bell | None = None, **rollout: Any) -> Iterator[Any]:
    """Have a pool whose actors are starting."""
    recipe = Recipe.model_validate({"name": "pool", "rollout": rollout})
    pool = RolloutPool(
        policy,
        recipe.model,
        recipe.rollout,
        None,
        num_threads=1,
        start_deadline_s=120.0,
        bell=bell,
    )
    pool.start()
    try:
        yield pool
    finally:
        pool.shutdown()


def tasks(first: int, count: int) -> list[GroupTask]:
    recipe = Recipe.model_validate({"name": "pool", "rollout": SLEEPING})
    return [
        replace(
            training_task(
                recipe,
                Prompt(prompt_id=f"p{number}", text="a ball"),
                visit=0,
                step=number,
                position=0,
            ),
            lease_id=f"lease-{number}",
        )
        for number in range(first, first + count)
    ]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def finish(pool: RolloutPool, by_id: dict[str, GroupTask]) -> tuple[list[str], list[LostGroup]]:
    """Collect all that is outstanding; what is lost is leased anew."""
    done: list[str] = []
    lost: list[LostGroup] = []
    deadline = time.monotonic() + 2 * SOON_S
    while pool.num_outstanding:
        assert time.monotonic() < deadline, f"still outstanding, done {done}"
        for answer in pool.collect(1.0):
            if isinstance(answer, SampledGroup):
                assert ray.get(answer.group).group_id == answer.summary.group_id
                done.append(answer.summary.group_id)
            else:
                lost.append(answer)
                pool.submit(replace(by_id[answer.group_id], lease_id=f"{answer.lease_id}+"))
    return done, lost


@pytest.mark.slow
def test_policy_that_cannot_be_loaded_is_the_users_one_line(tmp_path: Path) -> None:
    """Raised in a constructor it would arrive as Ray's report of a dead actor, traceback first."""
    gone = Policy(model_path="tiny", lora_path=str(tmp_path / "gone"))
    with opened(gone) as pool:
        with pytest.raises(ValueError, match="policy: no LoRA folder at") as caught:
            pool.wait_ready()
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_groups_survive_a_killed_and_a_stopped_actor_and_scaling() -> None:
    """Whatever becomes of the actors, each group comes back once; nobody waits for a start."""
    bell = Bell()
    with opened(bell=bell, num_actors=2, **SLEEPING) as pool:
        pool.wait_ready()
        given = tasks(0, 12)
        for task in given:
            pool.submit(task)
        assert bell.wait(SOON_S), "a finished group rings the bell"
        pool.kill_actor(0)
        pool.stop_actor(1)
        stopped = pool._loop.actors._addresses["actor-1.0"].pid
        done, lost = finish(pool, {task.group_id: task for task in given})
        assert sorted(done) == [task.group_id for task in given]
        assert {answer.cause for answer in lost} == {Cause.DIED, Cause.STUCK}
        assert set(pool.losses_by_prompt) == {answer.prompt_id for answer in lost}
        wait_until(lambda: not Path(f"/proc/{stopped}").exists())
        assert pool.num_lost == 2

        pool.scale(4)
        wait_until(lambda: pool.metrics()["rollout/actors/alive"] == 4)
        given = tasks(100, 24)
        for task in given:
            pool.submit(task)
        wait_until(lambda: pool.metrics()["rollout/actors/busy"] == 4)
        pool.scale(1)
        done, lost = finish(pool, {task.group_id: task for task in given})
        assert sorted(done) == [task.group_id for task in given]
        assert not lost
        wait_until(lambda: len(pool.actor_ids) == 1)

        pool.kill_actor(0)  # idle: the change of policy is what notices
        pool.use_policy(TINY, SOON_S)
        assert pool.num_lost == 3
        assert pool.metrics()["rollout/actors/alive"] == 1


@pytest.mark.slow
def test_damaged_publish_is_fetched_again_and_the_canary_answers() -> None:
    """A flipped bit costs a transfer, not the actor, and what samples then is what was published.

    The actor is a real one; a killed one's successor has the weights before it samples.
    """
    worker = "tests.system.odd_workers:open_lossy_worker"
    options = {"num_damaged": 2}
    with opened(worker=worker, worker_options=options, num_cpus=0.1) as pool:
        pool.wait_ready()
        manifest, buckets = published(3)
        (receipt,) = pool.publish(manifest, [ray.put(bucket) for bucket in buckets], SOON_S)
        assert (receipt.version, receipt.digest) == (3, manifest.digest)
        assert pool.step_metrics()["weights/rejected/count"] == 2

        # In a process as fresh as the actor's: what ran before in one can move the last bit.
        question, velocity, expected = ray.get(
            fresh(_reference).remote(manifest, buckets), timeout=SOON_S
        )
        pool.set_canary(*question, velocity, 1e-5)
        pool.wait_canary(SOON_S)
        assert pool.step_metrics()["rollout/canary/passed"] == 1

        pool.kill_actor(0)
        pool.submit(tiny_task(), min_version=3)
        (answer,) = pool.collect(SOON_S)
        if isinstance(answer, LostGroup):  # it was given out before the death was noticed
            pool.submit(replace(tiny_task(), lease_id="again"), min_version=3)
            (answer,) = pool.collect(SOON_S)
        assert answer.summary.actor_id == "actor-0.1"
        assert answer.summary.weights_digest == manifest.digest
        group = ray.get(answer.group)
        assert torch.equal(group.rollouts[1].latents, expected.rollouts[1].latents)
        assert pool.step_metrics()["rollout/canary/passed"] == 1


def fresh(function: Callable[..., Any]) -> Any:
    """Return the function as a task for a process of its own, with one thread."""
    return ray.remote(num_cpus=0, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})(function)


def _reference(manifest: WeightsManifest, buckets: list[Any]) -> tuple[Any, Any, RolloutGroup]:
    """Return a canary's question, the velocity there, and what the published weights sample."""
    torch.set_num_threads(1)
    worker = open_worker()
    worker.fetch_weights(manifest, buckets)
    group = worker.sample(tiny_task())
    shape = (1, *group.rollouts[0].latents.shape)
    question = (torch.ones(shape), torch.full((1,), 0.5), "a red ball falls")
    return question, worker.canary(*question), group


@pytest.mark.slow
def test_joining_actor_takes_a_spare_process_and_another_is_made() -> None:
    with opened(num_actors=1, num_spares=1, **SLEEPING) as pool:
        pool.wait_ready()
        wait_until(lambda: pool.metrics()["rollout/actors/spare"] == 1.0)
        [spare] = pool._loop.actors._spares._spares
        pool.scale(2)
        wait_until(lambda: pool.metrics()["rollout/actors/alive"] == 2.0)
        assert pool._loop.actors._actors["actor-1.0"] is spare.actor
        given = tasks(0, 6)
        for task in given:
            pool.submit(task)
        done, lost = finish(pool, {task.group_id: task for task in given})
        assert (len(done), lost) == (6, [])
        wait_until(lambda: pool.metrics()["rollout/actors/spare"] == 1.0)


@pytest.mark.slow
def test_death_of_a_spare_costs_no_actor() -> None:
    with opened(num_actors=1, num_spares=1, **SLEEPING) as pool:
        pool.wait_ready()
        wait_until(lambda: pool.metrics()["rollout/actors/spare"] == 1.0)
        [spare] = pool._loop.actors._spares._spares
        ray.kill(spare.actor)
        pool.scale(2)  # takes it, finds it dead and replaces it
        wait_until(lambda: pool.metrics()["rollout/actors/alive"] == 2.0)
        given = tasks(0, 4)
        for task in given:
            pool.submit(task)
        done, _ = finish(pool, {task.group_id: task for task in given})
        assert len(done) == 4
