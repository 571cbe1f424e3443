"""Which groups are written when, with a clock that stands still until it is told."""

from __future__ import annotations

import pytest

from rlvid.config import StorageConfig
from rlvid.launch.keep_queue import GIVE_UP_AFTER, KeepItem, KeepQueue
from rlvid.rewards.scoring import GroupScores

SCORES = GroupScores(scores=(), decode_s=0.0, score_s=0.0)


@pytest.fixture
def keep() -> KeepQueue:
    return KeepQueue(StorageConfig(max_writes_in_flight=2, disk_deadline_s=10.0))


def _add(keep: KeepQueue, *steps: int) -> None:
    for number, step in enumerate(steps):
        keep.add(KeepItem(group_id=f"{step}-{number}", step=step, group=None, scores=SCORES))


def test_no_more_are_at_the_writer_than_may_be(keep: KeepQueue) -> None:
    """Each one there is a group of tensors in the writer's memory."""
    _add(keep, 0, 0, 0)
    first, second = keep.begin(0.0)
    assert keep.begin(1.0) == []
    assert keep.backlog == 3
    done = keep.done(first[0], 100, 4.0)
    assert done is first[1]
    [third] = keep.begin(4.0)
    assert third[1].group_id == "0-2"
    assert (keep.counts.written, keep.counts.num_bytes, keep.counts.seconds) == (1, 100, 4.0)
    assert second[0] in keep.in_flight


def test_slow_write_is_counted_once_and_still_ends_well(keep: KeepQueue) -> None:
    """A slow disk costs safety, not the run."""
    _add(keep, 0)
    [(call, _)] = keep.begin(0.0)
    assert keep.newly_late(10.0) == []
    assert [item.group_id for item in keep.newly_late(10.1)] == ["0-0"]
    assert keep.newly_late(20.0) == []
    assert not keep.is_stopped(10.0 * GIVE_UP_AFTER)
    assert keep.is_stopped(10.0 * GIVE_UP_AFTER + 0.1)
    assert keep.done(call, 1, 39.0) is not None
    assert (keep.take_counts().late, keep.counts.late) == (1, 0)


def test_lost_writer_gets_its_groups_back_first_and_its_answers_count_no_more(
    keep: KeepQueue,
) -> None:
    """A stopped one that wakes up must not end a write that its successor began."""
    _add(keep, 0, 0, 0)
    old = [call for call, _ in keep.begin(0.0)]
    keep.begin_again()
    new = keep.begin(5.0)
    assert [item.group_id for _, item in new] == ["0-0", "0-1"]
    assert keep.done(old[0], 1, 6.0) is None
    assert keep.failed(old[1]) is None
    assert keep.backlog == 3
    assert (keep.counts.written, keep.counts.failed) == (0, 0)


def test_groups_that_nobody_wants_any_more_are_not_written(keep: KeepQueue) -> None:
    """Behind a slow disk they would pile up in the object store."""
    _add(keep, 0, 0, 0, 1)
    keep.begin(0.0)
    assert keep.drop_before(1) == 1
    assert [item.step for item in keep.waiting] == [1]
    assert [item.group_id for item in keep.fail_all()] == ["0-0", "0-1", "1-3"]
    assert (keep.backlog, keep.counts.failed) == (0, 3)
