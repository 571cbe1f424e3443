"""A rollout actor of two processes on Ray: what it samples, and that the fleet loses it as any."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import ray
import torch

from rlvid.actors.fleet_records import Cause
from rlvid.actors.pool import LostGroup, RolloutPool, SampledGroup
from rlvid.actors.rollout_worker import open_rollout_worker
from rlvid.config import Recipe
from rlvid.launch.cluster import open_cluster
from rlvid.launch.cluster_guard import VARIABLE
from rlvid.models.policy import Policy
from tests.unit.actors.worker_weights import clips, task

RECIPE = Recipe.model_validate(
    {
        "name": "gang",
        "model": {"num_frames": 9, "height": 32, "width": 32},
        "rollout": {"sequence_parallel": 2, "num_cpus": 0.5},
    }
)
TINY = Policy(model_path="tiny")
SOON_S = 60.0


@pytest.mark.slow
def test_group_is_that_of_one_process_and_a_killed_peer_costs_a_lease() -> None:
    """The loss names the peer, and nothing of the actor stays."""
    worker = open_rollout_worker(TINY, RECIPE.model, None, actor_id="alone", num_threads=1)
    with open_cluster(RECIPE):
        mark = os.environ[VARIABLE]
        pool = RolloutPool(
            TINY, RECIPE.model, RECIPE.rollout, None, num_threads=1, start_deadline_s=120.0
        )
        pool.start()
        try:
            pool.wait_ready()
            pool.submit(task())
            [sampled] = pool.collect(SOON_S)
            assert isinstance(sampled, SampledGroup), sampled
            found, expected = clips(ray.get(sampled.group)), clips(worker.sample(task()))
            torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)  # see numerics
            [peer] = peers(mark)
            os.kill(peer, signal.SIGKILL)
            pool.submit(task())
            [lost] = pool.collect(SOON_S)
        finally:
            pool.shutdown()
        until = time.monotonic() + SOON_S
        while peers(mark):
            assert time.monotonic() < until, "a peer outlives its actor"
            time.sleep(0.05)
    assert isinstance(lost, LostGroup), lost
    assert lost.cause is Cause.DIED
    assert f"rank 1 (process {peer}) ended by signal 9" in lost.reason


def peers(mark: str) -> list[int]:
    """Return the peers of actors of the cluster with this mark (`rlvid.launch.cluster_guard`)."""
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in numbers if is_peer(pid, mark)]


def is_peer(pid: int, mark: str) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return b"rlvid.actors.gang_peer" in command and mark.encode() in environment
