"""The process that writes scored groups, on real Ray: it dies, it stops, and no group is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from rlvid.bell import Bell
from rlvid.config import Recipe, StorageConfig
from rlvid.durable import disk_full
from rlvid.group_digest import digest_of_group
from rlvid.launch import group_keeper
from rlvid.launch.cluster import open_cluster
from rlvid.launch.group_keeper import Keeper, KeeperLostError, KeepFailure
from rlvid.launch.group_store import StoredGroup, StoredGroupError
from rlvid.ray_errors import cause_of
from tests.disk_faults.storage_scenarios import small_group

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with open_cluster(Recipe.model_validate({"name": "keeper"})):
        yield


Start = Callable[..., Keeper]


@pytest.fixture
def start(cluster: None, tmp_path: Path) -> Iterator[Start]:
    """Starts a keeper whose process is up."""
    keepers = []

    def started(folder: Path = tmp_path / "groups", **settings: float) -> Keeper:
        keeper = Keeper(folder, StorageConfig.model_validate(settings), bell=Bell())
        keeper.start()
        keepers.append(keeper)
        return keeper

    yield started
    for keeper in keepers:
        keeper.shutdown()


def _keep(keeper: Keeper, position: int, step: int = 0) -> str:
    group, scores = small_group(f"{step:06d}-{position:02d}", float(position))
    keeper.begin_keep(group.group_id, ray.put(group), scores, step=step)
    return group.group_id


def _process_id(keeper: Keeper) -> int:
    """Return the writer's, once it is up."""
    end = time.monotonic() + DEADLINE_S
    while keeper.process_id is None and time.monotonic() < end:
        assert keeper._bell is not None
        keeper._bell.wait(1.0)
        keeper.poll()
    assert keeper.process_id is not None, "the writer did not start"
    return keeper.process_id


@pytest.mark.slow
def test_group_comes_back_as_it_was_and_in_the_checkpoint(start: Start, tmp_path: Path) -> None:
    """Reference in, bytes on the disk, reference out; the bell says when."""
    keeper = start()
    assert keeper._bell is not None
    ids = [_keep(keeper, position, step=position) for position in range(4)]
    assert keeper.flush(DEADLINE_S)
    assert keeper._bell.wait(0.0)
    stored = keeper.poll()
    assert [entry.group_id for entry in stored] == ids
    assert all(isinstance(entry, StoredGroup) for entry in stored)
    metrics = keeper.step_metrics()
    assert (metrics["storage/groups/written"], metrics["storage/groups/backlog"]) == (4.0, 0.0)
    assert metrics["storage/write/mb"] > 0.0
    loaded = keeper.load(ids[2], DEADLINE_S)
    group, scores = small_group(ids[2], 2.0)
    assert digest_of_group(ray.get(loaded.group, timeout=DEADLINE_S)) == digest_of_group(group)
    summary = group.summary(digest_of_group(group))
    assert (loaded.summary, loaded.scores) == (summary, scores)
    assert keeper.link_into(tmp_path / "checkpoint", 2, DEADLINE_S) == 2
    keeper.drop_before(3)
    assert sorted(keeper.index(DEADLINE_S)) == [3]
    keeper.learned_from(3)
    end = time.monotonic() + DEADLINE_S
    while keeper.step_metrics()["storage/disk/mb"] == 0.0 and time.monotonic() < end:
        keeper._bell.wait(1.0)
        keeper.poll()
    assert keeper.step_metrics()["storage/disk/mb"] > 0.0
    assert keeper.restore_from(tmp_path / "checkpoint", DEADLINE_S) == 1
    assert sorted(keeper.index(DEADLINE_S)) == [2, 3]
    with pytest.raises(StoredGroupError, match="expected one file of group 000000-00, got 0"):
        keeper.load(ids[0], DEADLINE_S)


@pytest.mark.slow
def test_stopped_and_killed_writers_are_replaced_and_at_last_given_up(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray never notices a stopped one. Wherever it was cut off, what is there is whole."""
    monkeypatch.setattr(group_keeper, "MAX_REPLACEMENTS", 2)
    keeper = start(disk_deadline_s=1.0, max_writes_in_flight=1)
    ids: set[str] = set()
    for number, end in enumerate((signal.SIGSTOP, signal.SIGKILL)):
        os.kill(_process_id(keeper), end)
        ids |= {_keep(keeper, position) for position in range(2 * number, 2 * number + 2)}
        assert keeper.flush(DEADLINE_S)
    outcomes = keeper.poll()
    assert all(isinstance(outcome, StoredGroup) for outcome in outcomes)
    assert {outcome.group_id for outcome in outcomes} == ids
    assert keeper.step_metrics()["storage/groups/late"] >= 1.0

    os.kill(_process_id(keeper), signal.SIGKILL)
    lost = {_keep(keeper, position) for position in range(4, 6)}
    assert keeper.flush(DEADLINE_S)
    failures = keeper.poll()
    assert {failure.group_id for failure in failures} == lost
    for failure in failures:
        assert isinstance(failure, KeepFailure)
        assert isinstance(failure.error, KeeperLostError)
        assert not failure.is_disk_full
    # What was written while it could be is in the checkpoint all the same.
    assert keeper.link_into(tmp_path / "checkpoint", 0, DEADLINE_S) == len(ids)


@pytest.mark.slow
def test_folder_that_cannot_be_made_fails_each_group_and_not_the_run(
    start: Start, tmp_path: Path
) -> None:
    """The driver decides what a group is worth that is not on the disk."""
    (tmp_path / "file").write_text("no folder")
    keeper = start(tmp_path / "file" / "groups")
    _keep(keeper, 0)
    assert keeper.flush(DEADLINE_S)
    [failure] = keeper.poll()
    assert isinstance(failure, KeepFailure)
    assert isinstance(failure.error, FileExistsError)
    assert not failure.is_disk_full


@pytest.mark.slow
def test_full_disk_of_the_writer_is_a_full_disk_for_the_driver(
    cluster: None, tmp_path: Path
) -> None:
    """Ray wraps what an actor raises; the driver ends the run by its kind."""

    def meets_a_full_disk(folder: Path) -> None:
        raise disk_full(folder, "writing a group", 1000)

    call = ray.remote(num_cpus=0)(meets_a_full_disk).remote(tmp_path)
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(call, timeout=DEADLINE_S)
    error = cause_of(caught.value)
    failure = KeepFailure(group_id="a", step=0, error=error)
    assert failure.is_disk_full
    assert "at least 1,000 bytes" in str(error)
