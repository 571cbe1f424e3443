"""The sleeping twin gives real records, costs what it should and fails as often as told."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlvid.actors.sleeping import SleepingWorker, open_sleeping_worker
from rlvid.actors.worker import WorkerSettings, open_worker
from rlvid.config import ModelConfig
from rlvid.models.policy import Policy
from rlvid.weights import WeightsError
from tests.unit.actors.worker_weights import published, task

TINY = Policy(model_path="tiny")


def opened(**options: Any) -> SleepingWorker:
    return open_sleeping_worker(
        TINY, ModelConfig(), None, actor_id="actor-0.0", num_threads=1, options=options
    )


def test_group_takes_its_time_and_reports_its_steps() -> None:
    worker = opened(sample_s=0.2)
    began = time.perf_counter()
    group = worker.sample(task())
    assert 0.2 <= time.perf_counter() - began < 2.0
    assert worker.num_steps == task().plan.num_steps
    assert (group.group_id, group.lease_id, len(group.rollouts)) == ("000000-00", "lease", 2)
    assert group.rollouts[0].behaviour_log_prob.shape == (len(task().plan.trained_steps),)


def test_group_is_a_function_of_its_seeds() -> None:
    """A replaced actor must give what the lost one would have given."""
    first, second = (opened(sample_s=0.0).sample(task()) for _ in range(2))
    assert torch.equal(first.rollouts[1].latents, second.rollouts[1].latents)
    assert not torch.equal(first.rollouts[0].latents, first.rollouts[1].latents)


def test_next_group_has_the_staged_version() -> None:
    worker = opened(sample_s=0.0)
    manifest, buckets = published(4)
    assert worker.stage(manifest, buckets).digest == manifest.digest
    assert worker.live == (-1, -1)
    assert worker.sample(task()).policy_version == 4
    with pytest.raises(WeightsError, match="expected one newer than 4"):
        worker.stage(*published(3))


def test_failures_come_as_often_as_told_and_another_lease_has_another_fate() -> None:
    worker = opened(sample_s=0.0, fail_frac=0.3)
    num_failed = 0
    for number in range(300):
        try:
            worker.sample(replace(task(), lease_id=f"lease-{number}"))
        except RuntimeError:
            num_failed += 1
    assert 60 <= num_failed <= 120  # 90 expected, 8 standard deviation


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"rollout.worker_options.sample_z: Extra inputs"):
        opened(sample_z=1.0)


def test_worker_is_found_by_name() -> None:
    settings = WorkerSettings(
        use="slepping",
        policy=TINY,
        model_config=ModelConfig(),
        learner_config=None,
        weights_config=None,
        num_threads=1,
    )
    with pytest.raises(ValueError, match="rollout.worker: unknown name 'slepping'; did you mean"):
        open_worker(settings, "actor-0.0")
    worker = open_worker(replace(settings, use="sleeping"), "actor-0.0")
    assert isinstance(worker, SleepingWorker)
