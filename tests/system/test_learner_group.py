"""The gang of learner ranks on a real Ray: train, publish, die, resume."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from rlvid.algorithms.score_table import RewardTable
from rlvid.bell import Bell
from rlvid.config import Recipe
from rlvid.learners.checkpoint import find_latest
from rlvid.learners.group import LearnerGroup, LearnerLostError
from rlvid.learners.rl import StaleGroupError
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards
from rlvid.models.base import VideoModel
from rlvid.models.lora import add_lora
from rlvid.models.policy import Policy
from rlvid.records import RolloutGroup, WeightsManifest
from rlvid.testing import tiny_model
from rlvid.weights import apply_weights, digest_bytes
from rlvid.weights.folder import newest_publish
from tests.system.conftest import local_ray

pytestmark = pytest.mark.slow

START_S = 240.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=2, object_store_mb=200):
        yield


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_model(0).save(str(folder))
    return Policy(model_path=str(folder))


def _recipe() -> Recipe:
    return tiny_recipe(learner={"num_ranks": 2, "zero_stage": 2, "ema": {"decay": 0.5, "every": 1}})


def _actor(recipe: Recipe) -> VideoModel:
    model = tiny_model(0)
    add_lora(model.transformer, recipe.learner.lora)
    return model


def _sample(
    recipe: Recipe, manifest: WeightsManifest, buckets: list[Any], step: int
) -> dict[str, RolloutGroup]:
    """Sample in a process as fresh as the ranks': what ran before in one can move the last bit."""
    torch.set_num_threads(1)
    actor = _actor(recipe)
    apply_weights(manifest, ray.get(buckets), actor.transformer, mode="lora")
    return tiny_groups(actor, recipe, version=step, digest=manifest.digest, step=step)


def _train(gang: LearnerGroup, recipe: Recipe, step: int) -> tuple[dict[str, RolloutGroup], Any]:
    """Publish, sample and train as the loop does; return the groups and the report."""
    manifest, buckets = gang.publish(step)
    one_thread = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    sample: Any = ray.remote(num_cpus=0, runtime_env=one_thread)(_sample)
    groups = ray.get(sample.remote(recipe, manifest, buckets, step), timeout=START_S)
    references = [ray.put(group) for group in groups.values()]
    report = gang.train(references, tiny_rewards(groups), step=step)
    return groups, report


def test_gang_trains_publishes_dies_and_resumes(
    cluster: None, policy: Policy, tmp_path: Path
) -> None:
    """One story, since a gang takes long to start: what the loop asks of the learner."""
    recipe = _recipe()
    actor = _actor(recipe)
    gang = LearnerGroup.start_rl(recipe, policy)
    try:
        gang.wait_ready(START_S)
        groups, report = _train(gang, recipe, 0)
        assert report.metrics["learner/replay_drift/max"] == 0.0
        assert len(report.trained_group_ids) == 4

        manifest, buckets = gang.publish(1)
        saved = gang.save_checkpoint(tmp_path, step=1, keep=2)
        references = [ray.put(group) for group in groups.values()]
        with pytest.raises(StaleGroupError, match="from policy 0 reached policy 1"):
            gang.train(references, tiny_rewards(groups), step=1)

        ray.kill(gang._ranks[1])
        with pytest.raises(LearnerLostError, match="rank 1 died while (the canary|idle)"):
            gang.canary("a red ball")
        # Buckets belong to the driver: they outlive the rank that packed them.
        ray.kill(gang._ranks[0])
        apply_weights(manifest, ray.get(buckets), actor.transformer, mode="lora")
    finally:
        gang.shutdown()

    latest = find_latest(tmp_path)
    assert latest is not None
    assert latest.path == saved
    gang = LearnerGroup.start_rl(recipe, policy)
    try:
        gang.wait_ready(START_S)
        gang.load_checkpoint(latest.path)
        again, _ = gang.publish(latest.step)
        assert again.digest == manifest.digest
        gang.export(tmp_path / "policy")
        assert (tmp_path / "policy" / "pytorch_lora_weights.safetensors").is_file()
        assert (tmp_path / "policy_ema" / "pytorch_lora_weights.safetensors").is_file()
    finally:
        gang.shutdown()


def test_rank_that_cannot_open_its_policy_names_itself(cluster: None, tmp_path: Path) -> None:
    """The message must be the model's own, not a gang that never became ready."""
    gang = LearnerGroup.start_rl(tiny_recipe(), Policy(model_path=str(tmp_path / "missing")))
    try:
        with pytest.raises(ValueError, match="missing") as caught:
            gang.wait_ready(START_S)
    finally:
        gang.shutdown()
    assert "learner rank 0, while loading the policy" in caught.value.__notes__


def test_wait_ends_at_its_deadline_and_names_the_ranks(cluster: None, policy: Policy) -> None:
    """A stuck rank is never noticed by Ray."""
    gang = LearnerGroup.start_rl(tiny_recipe(), policy)
    try:
        with pytest.raises(LearnerLostError, match=r"rank 0 did not finish loading .* 0.01 s"):
            gang.wait_ready(0.01)
    finally:
        gang.shutdown()


def test_gang_publishes_through_a_shared_folder(cluster: None, tmp_path: Path) -> None:
    """An actor without Ray finds there what the driver's manifest says, byte for byte."""
    folder = tmp_path / "weights"
    recipe = tiny_recipe(
        learner={"worker": "sleeping", "sleeping": {"publish_s": 0.0}},
        weights={"transport": "shared_folder", "folder": str(folder)},
    )
    gang = LearnerGroup.start_rl(recipe, Policy(model_path="tiny"))
    try:
        gang.wait_ready(START_S)
        for version in (2, 3):
            manifest, parts = gang.publish(version, incarnation=1)
    finally:
        gang.shutdown()
    found, part = newest_publish(folder)
    assert (manifest.order, found, parts) == ((1, 3), manifest, [part])
    out = torch.empty(manifest.num_bytes, dtype=torch.uint8)
    part.open(manifest).receive(0, out)
    assert digest_bytes(out.numpy()) == manifest.buckets[0].digest


def _sleeping(train_s: float = 0.2) -> Recipe:
    return tiny_recipe(
        learner={
            "worker": "sleeping",
            "num_ranks": 2,
            "num_cpus": 0.5,
            "stall_s": 4.0,
            "sleeping": {"train_s": train_s, "publish_s": 0.0},
        }
    )


def _chunk(gang: LearnerGroup, step: int, row: int, num_groups: int = 2) -> Any:
    """Hand in a chunk of one group that nobody looks at."""
    name = f"{step:06d}-{row:02d}"
    rewards = RewardTable(
        group_ids=(name,), values={"reward": torch.zeros(1, 4)}, weights={"reward": 1.0}
    )
    return gang.begin_chunk(
        {name: ray.put(None)},
        rewards,
        step=step,
        num_groups=num_groups,
        first_row=row,
        is_last=row == num_groups - 1,
    )


def test_calls_queue_up_behind_each_other_and_a_stopped_rank_is_found(
    cluster: None, policy: Policy
) -> None:
    """The end of a step, its publish and the next step are given without a wait between them.

    Then a rank is stopped: Ray never notices, its heartbeat does, far below `deadline_s`; and a
    new gang starts beside what is left of the old one.
    """
    bell = Bell()
    recipe = _sleeping()
    gang = LearnerGroup.start_rl(recipe, policy, bell=bell)
    try:
        gang.wait_ready(START_S)
        while bell.wait(0.0):
            pass
        calls = [_chunk(gang, 0, 0), _chunk(gang, 0, 1), gang.begin_publish(1), _chunk(gang, 1, 0)]
        assert not calls[-1].poll()
        assert bell.wait(30.0)
        report = calls[1].result()
        assert report.trained_group_ids == ("000000-00", "000000-01")
        manifest, parts = calls[2].result()
        assert len(ray.get(parts[0])) == manifest.buckets[0].num_bytes
        assert calls[3].result() is None

        os.kill(gang.process_ids[1], signal.SIGSTOP)
        late = [_chunk(gang, 1, 1), gang.begin_publish(2)]
        began = time.monotonic()
        with pytest.raises(LearnerLostError, match=r"rank 1 gave no sign of life for 4 s"):
            late[0].result()
        assert time.monotonic() - began < 60.0
        with pytest.raises(LearnerLostError, match="rank 1 gave no sign of life"):
            late[1].result()
        with pytest.raises(LearnerLostError):
            gang.check()
    finally:
        gang.shutdown()
    assert _ends(gang.process_ids, within_s=30.0)
    again = LearnerGroup.start_rl(recipe, policy)
    try:
        again.wait_ready(START_S)
        assert again.publish(1)[0].version == 1
    finally:
        again.shutdown()


def _ends(process_ids: Sequence[int], *, within_s: float) -> bool:
    """Return whether all processes are gone in time; a zombie is gone."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        states = [_state(number) for number in process_ids]
        if all(state in ("gone", "Z") for state in states):
            return True
        time.sleep(0.1)
    return False


def _state(process_id: int) -> str:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "gone"
