"""A rollout actor of several processes: the groups of one, the newest weights, and a clear end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.actors.gang_peers import GangSettings, start_peers
from rlvid.actors.gang_process import GangError
from rlvid.actors.rollout_worker import RolloutWorker
from rlvid.actors.worker import WorkerSettings, open_worker
from rlvid.config import LearnerConfig, ModelConfig
from rlvid.models.policy import Policy
from rlvid.records import RolloutGroup
from rlvid.testing import tiny_model
from tests.unit.actors.worker_weights import LORA, clips, published, task
from tests.unit.models import family_checks
from tests.unit.models.family_checks import FAMILIES

ROUNDING = 1e-5
"""Of latents up to 5, after two steps. Wan's came out bit for bit here, and CogVideoX's no further
off than 1e-6; matrices of half as many rows may be multiplied in another order."""
GUIDED = replace(task(), guidance_scale=3.0)

pytestmark = pytest.mark.slow


@contextmanager
def opened(settings: WorkerSettings, *, deadline_s: float) -> Iterator[Any]:
    """Have a worker that samples with a process beside it."""
    gang = GangSettings(num_ranks=2, start_deadline_s=120.0, deadline_s=deadline_s)
    worker: Any = open_worker(replace(settings, gang=gang), "actor-0.0")
    try:
        yield worker
    finally:
        worker._gang.close()


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> WorkerSettings:
    folder = tmp_path_factory.mktemp("wan")
    tiny_model(0).save(str(folder))
    return WorkerSettings(
        use="diffusion",
        policy=Policy(model_path=str(folder)),
        model_config=ModelConfig(num_frames=9, height=32, width=32),
        learner_config=LearnerConfig(lora=LORA),
        weights_config=None,
        num_threads=1,
    )


@pytest.fixture(scope="module")
def together(wan: WorkerSettings) -> Iterator[Any]:
    with opened(wan, deadline_s=60.0) as worker:
        yield worker


@pytest.fixture
def alone(wan: WorkerSettings) -> RolloutWorker:
    worker: Any = open_worker(wan, "actor-0.0")
    return worker  # type: ignore[no-any-return]


def assert_alike(found: RolloutGroup, expected: RolloutGroup) -> None:
    assert float(clips(expected).abs().max()) > 1.0
    torch.testing.assert_close(clips(found), clips(expected), rtol=0.0, atol=ROUNDING)
    for one, other in zip(found.rollouts, expected.rollouts, strict=True):
        torch.testing.assert_close(one.behaviour_log_prob, other.behaviour_log_prob)
    assert (found.policy_version, found.weights_digest, found.num_forwards) == (
        expected.policy_version,
        expected.weights_digest,
        expected.num_forwards,
    )


def test_groups_and_canary_are_those_of_one_process_at_every_publish(
    together: Any, alone: RolloutWorker
) -> None:
    """The last publish is of a restarted learner: a lower version, and newer."""
    latents, sigma = torch.randn(1, 4, 3, 4, 4), torch.tensor([0.7])
    samples = []
    for publish in (None, (1, 0), (2, 0), (1, 1)):
        if publish is not None:
            version, incarnation = publish
            weights = published(version, incarnation=incarnation, mode="lora", seed=sum(publish))
            for worker in (together, alone):
                worker.stage(*weights)
        found, expected = together.sample(GUIDED), alone.sample(GUIDED)
        assert_alike(found, expected)
        answers = [w.canary(latents, sigma, "a red ball falls") for w in (together, alone)]
        torch.testing.assert_close(*answers, rtol=0.0, atol=ROUNDING)
        samples.append(clips(found))
    assert not any(torch.equal(one, samples[0]) for one in samples[1:])


def test_policy_from_files_takes_the_place_of_published_weights(
    together: Any, alone: RolloutWorker, wan: WorkerSettings
) -> None:
    """Evaluation goes from one policy to the next on the same processes."""
    tiny = Policy(model_path="tiny")
    base = clips(alone.sample(GUIDED))
    for worker in (together, alone):
        worker.use_policy(tiny)
    found, expected = together.sample(GUIDED), alone.sample(GUIDED)
    assert_alike(found, expected)
    assert not torch.equal(clips(found), base)
    together.use_policy(wan.policy)
    torch.testing.assert_close(clips(together.sample(GUIDED)), base, rtol=0.0, atol=ROUNDING)


def test_peer_with_other_weights_ends_the_actor_and_says_so(together: Any) -> None:
    """Last of these: it ends what they share."""
    gang = together._gang
    gang._order = (0, 7)
    for _ in range(2):  # nor is it tried again
        with pytest.raises(GangError) as caught:
            together.sample(GUIDED)
        said = str(caught.value)
        assert f"rank 1 (process {gang.pids[0]}) ended by exit code 1" in said
        assert (
            "holds weights (-1, -1) (incarnation, version), the leader samples with (0, 7)" in said
        )
        assert "\n" not in said


def test_peer_that_cannot_load_says_so_at_once(tmp_path: Path) -> None:
    """Nobody waits for the start's deadline."""
    gone = Policy(model_path=str(tmp_path / "gone"))
    gang = GangSettings(num_ranks=2, start_deadline_s=120.0, deadline_s=60.0)
    peers = start_peers(gang, gone, ModelConfig(device="cpu"), None, num_threads=1)
    with pytest.raises(GangError, match=r"rank 1 .* by exit code 1; .*ValueError: model\.path: "):
        peers.wait_loaded()


def test_another_family_is_spread_and_a_stopped_peer_is_given_up(tmp_path: Path) -> None:
    """SIGSTOP leaves the connection as it is, so that only the deadline finds it."""
    family = FAMILIES["cogvideox"]
    family_checks.build(family).save(str(tmp_path))
    settings = WorkerSettings(
        use="diffusion",
        policy=Policy(model_path=str(tmp_path)),
        model_config=family_checks.config_of(family, tmp_path),
        learner_config=None,
        weights_config=None,
        num_threads=1,
    )
    expected = open_worker(settings, "actor-0.0").sample(GUIDED)
    with opened(settings, deadline_s=4.0) as worker:
        assert_alike(worker.sample(GUIDED), expected)
        pid = worker._gang.pids[0]
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(GangError, match=r"did not answer within 4 s \(of rollout.stall_s\)"):
            worker.sample(GUIDED)
        assert time.monotonic() - began < 30.0
        assert not Path(f"/proc/{pid}").exists()
