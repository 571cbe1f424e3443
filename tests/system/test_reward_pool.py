"""The reward pool on real Ray: who works beside whom, and what each kind of failure costs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import ray

from rlvid.bell import Bell
from rlvid.config import ClusterConfig, ModelConfig, RewardsConfig, ScorerConfig
from rlvid.data.video_files import write_mp4
from rlvid.records import Prompt
from rlvid.rewards.base import RewardError
from rlvid.rewards.decoding import Frames
from rlvid.rewards.pool import RewardPool, RewardTimeoutError
from rlvid.rewards.scoring import GroupScores
from rlvid.testing import tiny_model
from tests.system.conftest import local_ray
from tests.unit.rewards.scorers import group

pytestmark = pytest.mark.slow

HERE = "tests.system.reward_faults"
CLUSTER = ClusterConfig(start_deadline_s=120.0)
GROUP_SIZE = 3
PROMPT = Prompt(prompt_id="0123456789abcdef", text="a red ball falls to the left")
MEAN = ScorerConfig(use=f"{HERE}:Mean", name="mean")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A random tiny model in a folder, as a run would load it."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save(str(folder))
    return ModelConfig(path=str(folder), num_frames=9, height=16, width=16)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=8, object_store_mb=200):
        yield


@contextmanager
def open_pool(
    model: ModelConfig | None, *scorers: ScorerConfig, **settings: object
) -> Iterator[RewardPool]:
    """Start a pool and see that it is up."""
    rewards = RewardsConfig.model_validate(
        {"deadline_s": 60.0, **settings, "scorers": scorers or (MEAN,)}
    )
    pool = RewardPool(rewards, model, CLUSTER)
    pool.start()
    try:
        pool.health_check(120.0)
        yield pool
    finally:
        pool.shutdown()


def slow(name: str, seconds: float, folder: Path | str = "", **settings: object) -> ScorerConfig:
    config = {"seconds": seconds, "pid_folder": str(folder)}
    return ScorerConfig.model_validate(
        {"use": f"{HERE}:Slow", "name": name, "config": config, **settings}
    )


def sampled(count: int) -> list[ray.ObjectRef]:
    return [
        ray.put(group(f"000000-{n:02d}", GROUP_SIZE, latent_shape=(4, 3, 2, 2)))
        for n in range(count)
    ]


def grey_clips(*levels: int) -> Frames:
    """[G, 5, 8, 8, 3]: one clip of each grey level."""
    return np.stack([np.full((5, 8, 8, 3), level, dtype=np.uint8) for level in levels])


def collect_all(pool: RewardPool, tickets: list[int], limit_s: float = 60.0) -> list[GroupScores]:
    answers: dict[int, GroupScores] = {}
    give_up = time.monotonic() + limit_s
    while len(answers) < len(tickets):
        assert time.monotonic() < give_up, f"{len(answers)} of {len(tickets)} in {limit_s:g} s"
        answers.update(pool.collect(5.0))
    return [answers[ticket] for ticket in tickets]


def wait_until(holds: Callable[[], bool], limit_s: float = 200.0) -> None:
    give_up = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < give_up, f"it did not come true in {limit_s:g} s"
        time.sleep(0.05)


def values(answer: GroupScores, scorer: str) -> list[float | None]:
    return [score.value for score in answer.scores if score.scorer == scorer]


def test_groups_are_decoded_once_and_scored_by_all_in_order(model: ModelConfig) -> None:
    with open_pool(model, ScorerConfig(use="realism"), MEAN) as pool:
        references = sampled(6)
        answers = pool.score(references)
        assert [a.scores[0].group_id for a in answers] == [f"000000-{n:02d}" for n in range(6)]
        order = [(s.scorer, s.index) for s in answers[0].scores]
        assert order == [(name, n) for name in ("realism", "mean") for n in range(GROUP_SIZE)]
        assert all(score.value is not None for a in answers for score in a.scores)
        metrics = pool.metrics()
        assert metrics["reward_pool/decode/groups"] == 6.0
        shown = pool.clips(references[0]).float().mean(dim=(1, 2, 3, 4)) / 255.0
        assert values(answers[0], "mean") == pytest.approx(shown.tolist(), abs=1e-4)
        # The six groups are alike, and the scores of the first are known by the time of the last.
        again = pool.score(references[:1])
        assert values(again[0], "mean") == values(answers[0], "mean")
        assert pool.metrics()["rewards/mean/cache_hit_frac"] > 0.0


def test_colocated_scorers_share_one_process(model: ModelConfig) -> None:
    with open_pool(model, ScorerConfig(use="realism"), MEAN, colocate=True) as pool:
        answers = pool.score(sampled(3))
        assert all(score.value is not None for a in answers for score in a.scores)
        assert pool.num_processes == 1


def test_scorers_work_side_by_side() -> None:
    """Two that sleep 1 s a batch take 1 s together; one after the other they would take 2."""
    with open_pool(None, slow("a", 1.0), slow("b", 1.0)) as pool:
        started = time.monotonic()
        ticket = pool.submit_clips(grey_clips(1, 2), PROMPT, fps=8, group_id="g")
        collect_all(pool, [ticket])
        assert time.monotonic() - started < 1.7


def test_given_clips_and_files_are_scored_as_they_are(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "clip.mp4"
    write_mp4(path, torch.full((5, 3, 16, 16), 0.6), fps=8)
    with open_pool(None, MEAN) as pool:
        tickets = [
            pool.submit_clips(grey_clips(0, 51), PROMPT, fps=8, group_id="clips"),
            pool.submit_files([path.read_bytes()] * 2, PROMPT, group_id="files"),
            pool.submit_files([b"no video"], PROMPT, group_id="broken"),
        ]
        clips, files, broken = collect_all(pool, tickets)
        assert values(clips, "mean") == pytest.approx([0.0, 0.2], abs=1e-6)
        assert values(files, "mean") == pytest.approx([0.6, 0.6], abs=0.02)  # yuv420p rounds
        assert values(broken, "mean") == [None]
        assert "cannot be read as a video" in str(broken.scores[0].error)


def test_killing_a_replica_in_the_middle_loses_no_group(model: ModelConfig, tmp_path: Path) -> None:
    """The driver owns groups and clips; a replica holds nothing that cannot be done again."""
    scorer = slow("slow", 0.5, tmp_path, num_replicas=2, batch_size=GROUP_SIZE)
    with open_pool(model, scorer, cache_entries=0) as pool:
        tickets = [pool.submit(ref) for ref in sampled(6)]
        wait_until(lambda: any(tmp_path.iterdir()))
        os.kill(int(next(tmp_path.iterdir()).name), signal.SIGKILL)
        answers = collect_all(pool, tickets)
        assert [a.scores[0].group_id for a in answers] == [f"000000-{n:02d}" for n in range(6)]
        assert all(score.value is not None for a in answers for score in a.scores)
        assert pool.num_replaced == 1


def test_a_stopped_replica_is_found_by_its_silence_long_before_its_deadline(tmp_path: Path) -> None:
    """Ray never notices a stopped process, and its call has as long as the whole group."""
    with open_pool(None, slow("slow", 0.2, tmp_path), heartbeat_s=0.5, stall_s=3.0) as pool:
        first = pool.submit_clips(grey_clips(1), PROMPT, fps=8, group_id="first")
        collect_all(pool, [first])
        os.kill(int(next(tmp_path.iterdir()).name), signal.SIGSTOP)
        tickets = [
            pool.submit_clips(grey_clips(level), PROMPT, fps=8, group_id=f"g{level}")
            for level in (2, 3, 4)
        ]
        answers = collect_all(pool, tickets)
        assert all(score.value is not None for a in answers for score in a.scores)
        assert pool.num_replaced == 1


def test_stopped_processes_cost_one_deadline_and_their_late_answers_count_for_nobody(
    model: ModelConfig,
) -> None:
    """The decoder and a scorer are stopped, found, replaced; the scorer goes on and answers."""
    bell = Bell()
    sleeping = ScorerConfig(use="sleeping", config={"score_s": 0.1, "per": "call"}, deadline_s=5.0)
    rewards = RewardsConfig(scorers=(sleeping,), deadline_s=30.0, cache_entries=0)
    pool = RewardPool(rewards, model, CLUSTER, bell=bell)
    pool.start()
    try:
        pool.health_check(120.0)
        assert pool.num_replicas("sleeping") == 1
        before = {label: pid for label, _, pid in pool.processes()}
        assert sorted(before) == ["decoder", "sleeping"]
        [right] = pool.score(sampled(1))
        os.kill(before["sleeping"], signal.SIGSTOP)
        tickets = [pool.submit(ref) for ref in sampled(3)]
        while bell.wait(0.0):
            pass
        wait_until(lambda: pool.num_replaced == 1)
        os.kill(before["sleeping"], signal.SIGCONT)  # before Ray's SIGKILL comes, 5 s later
        assert bell.wait(60.0)
        answers = collect_all(pool, tickets)
        # The clips are alike, so every score is that of the first one, and none is missing.
        assert [values(a, "sleeping") for a in answers] == 3 * [values(right, "sleeping")]
        assert [a.scores[0].group_id for a in answers] == [f"000000-{n:02d}" for n in range(3)]
        assert pool.num_replaced == 1
        wait_until(lambda: not Path(f"/proc/{before['sleeping']}").exists() or is_zombie(before))
    finally:
        pool.shutdown()


def is_zombie(processes: dict[str, int]) -> bool:
    return " Z " in Path(f"/proc/{processes['sleeping']}/stat").read_text()


def test_a_stopped_decoder_is_replaced(model: ModelConfig) -> None:
    with open_pool(model, deadline_s=6.0) as pool:
        [decoder] = [pid for label, _, pid in pool.processes() if label == "decoder"]
        os.kill(decoder, signal.SIGSTOP)
        [answer] = collect_all(pool, [pool.submit(sampled(1)[0])])
        assert None not in values(answer, "mean")
        assert pool.num_replaced == 1


def test_a_hung_scorer_is_missing_after_the_deadline_and_never_zero() -> None:
    """It costs the deadline once: what comes next does not wait for it again.

    The deadline is long beside what the quick scorer needs on a busy machine, where it would be
    late itself.
    """
    with open_pool(None, MEAN, slow("hung", 600.0), deadline_s=8.0) as pool:
        started = time.monotonic()
        tickets = [
            pool.submit_clips(grey_clips(level, 9), PROMPT, fps=8, group_id=f"g{level}")
            for level in range(4)
        ]
        answers = collect_all(pool, tickets)
        assert time.monotonic() - started < 14.0
        for answer in answers:
            assert None not in values(answer, "mean")
            assert values(answer, "hung") == [None, None]
        assert "RewardTimeoutError: no score within rewards.deadline_s of 8 s" in str(
            answers[0].scores[-1].error
        )
        ticket = pool.submit_clips(grey_clips(77), PROMPT, fps=8, group_id="next")
        [answer] = collect_all(pool, [ticket])
        assert values(answer, "hung") == [None]
        assert "no replica is to be asked" in str(answer.scores[-1].error), "it waited once more"
        assert pool.metrics()["rewards/hung/breaker_openings"] == 1.0


def test_a_clip_that_crashes_its_process_blanks_no_other(tmp_path: Path) -> None:
    scorer = ScorerConfig(use=f"{HERE}:CrashesOnWhite", name="mean")
    with open_pool(None, scorer, max_attempts=2) as pool:
        ticket = pool.submit_clips(grey_clips(51, 255, 102), PROMPT, fps=8, group_id="g")
        found = values(collect_all(pool, [ticket])[0], "mean")
        assert found[1] is None
        assert [found[0], found[2]] == pytest.approx([0.2, 0.4], abs=1e-6)


def test_a_scorer_that_crashes_every_process_is_blamed() -> None:
    """Replacing forever would hide a scorer that takes its process down."""
    with open_pool(None, ScorerConfig(use=f"{HERE}:Crashes"), max_attempts=9) as pool:
        tickets = [pool.submit_clips(grey_clips(1), PROMPT, fps=8, group_id="g")]
        with pytest.raises(RewardError, match=r"replicas of .*Crashes failed with nothing scored"):
            collect_all(pool, tickets, limit_s=120.0)


def test_a_broken_contract_reaches_the_driver_in_plain_words() -> None:
    scorer = ScorerConfig(use="tests.unit.rewards.scorers:OneForAll", name="mine")
    with open_pool(None, scorer) as pool:
        pool.submit_clips(grey_clips(1, 2, 3), PROMPT, fps=8, group_id="g")
        with pytest.raises(RewardError, match=r"^rewards 'mine': returned shape \(4,\) for 3"):
            pool.collect(30.0)


def test_a_bad_scorer_is_found_by_the_health_check() -> None:
    with (
        pytest.raises(ValueError, match=r"rewards\.scorers\.0\.use.*did you mean 'physics'"),
        open_pool(None, ScorerConfig(use="phisics")),
    ):
        pass


def test_a_scorer_for_other_clips_is_refused_before_anything_is_sampled(
    model: ModelConfig,
) -> None:
    wide = ScorerConfig(use="tests.unit.rewards.scorers:NeedsWideClips", name="wide")
    with (
        pytest.raises(RewardError, match=r"scorers\.1 'wide': needs clips with fps 16, width 832"),
        open_pool(model, MEAN, wide),
    ):
        pass


def test_replicas_that_find_no_room_are_an_error_and_no_hang() -> None:
    scorer = ScorerConfig(use=f"{HERE}:Mean", name="huge", num_cpus=64.0)
    pool = RewardPool(RewardsConfig(scorers=(scorer,)), None, CLUSTER)
    pool.start()
    try:
        with pytest.raises(RewardTimeoutError, match="1 of 1 replicas of huge .*within 3 s"):
            pool.health_check(3.0)
    finally:
        pool.shutdown()


def test_declared_resources_hold_and_replicas_scale_by_hand() -> None:
    with open_pool(None, ScorerConfig(use=f"{HERE}:HalfACpu", name="half")) as pool:
        wait_until(lambda: pool.metrics()["rewards/half/replicas"] == 2.0)
        free = ray.available_resources()["CPU"]
        assert free == pytest.approx(8.0 - 1.0 - 2 * 0.25)  # a decoder, two replicas
        pool.scale("half", 3)
        wait_until(lambda: pool.metrics()["rewards/half/replicas"] == 3.0)
        pool.scale("half", 1)
        wait_until(lambda: pool.metrics()["rewards/half/replicas"] == 1.0)
        ticket = pool.submit_clips(grey_clips(51), PROMPT, fps=8, group_id="g")
        assert values(collect_all(pool, [ticket])[0], "half") == pytest.approx([0.2], abs=1e-6)
