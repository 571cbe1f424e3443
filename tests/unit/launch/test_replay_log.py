"""The log of what was consumed: whole up to a crash, refused when damaged before it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from rlvid.launch.replay_log import ReplayLogError, compare, open_replay_log, read_replay_log
from tests.disk_faults.storage_scenarios import record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "replay.log"


def _write(path: Path, *batches: list[tuple[int, int]]) -> None:
    log = open_replay_log(path)
    for batch in batches:
        log.append([record(order, step) for order, step in batch])
    log.close()


def _orders(path: Path) -> list[int]:
    return [entry.order for entry in read_replay_log(path)]


def test_what_was_appended_is_read_in_order(path: Path) -> None:
    """Over several openings, as a resumed run does."""
    _write(path, [(0, 0), (1, 0)], [(2, 1)])
    _write(path, [(3, 1)])
    assert read_replay_log(path) == [record(0, 0), record(1, 0), record(2, 1), record(3, 1)]


def test_torn_batch_is_cut_whole_wherever_it_was_torn(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch is what the learner consumed at once; half of one never was."""
    _write(path, [(0, 0)])
    start = path.stat().st_size
    _write(path, [(1, 1), (2, 1)])
    data = path.read_bytes()
    for size in range(start, len(data), 23):
        path.write_bytes(data[:size])
        assert _orders(path) == [0]
        with caplog.at_level(logging.WARNING):
            _write(path, [(3, 1)])
        assert _orders(path) == [0, 3]
    assert "cut a torn tail" in caplog.text
    # What a disk that lost power may hold: the right length, and nothing in it.
    path.write_bytes(data[:start] + bytes(len(data) - start))
    assert _orders(path) == [0]


def test_damage_before_the_end_is_an_error(path: Path) -> None:
    """No crash does that; to cut everything behind it would forge the run's history."""
    _write(path, [(0, 0)], [(1, 0)], [(2, 1)])
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(ReplayLogError, match="batch 0 at byte 8 is damaged and whole ones follow"):
        open_replay_log(path)


def test_another_file_is_not_cut_to_nothing(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("what somebody keeps there")
    with pytest.raises(ReplayLogError, match="expected a file that starts with"):
        open_replay_log(path)
    assert path.read_text() == "what somebody keeps there"


def test_resumed_run_forgets_what_it_will_consume_again(path: Path) -> None:
    """Steps may end inside a batch."""
    _write(path, [(0, 0), (1, 1)], [(2, 1), (3, 2)])
    log = open_replay_log(path)
    assert log.forget_from(2) == 1
    assert log.forget_from(2) == 0
    log.append([replace(record(3, 2), policy_version=1)])
    log.close()
    assert _orders(path) == [0, 1, 2, 3]
    assert read_replay_log(path)[3].policy_version == 1


def test_comparison_names_the_group_and_what_differs() -> None:
    """How often the learner had to start is no difference in what was learned."""
    first = [record(0, 0), record(1, 0)]
    same = [replace(entry, incarnation=4, weights_digest="x") for entry in first]
    assert compare(first, same) == []
    assert compare(first, same, names=("incarnation",)) == [
        "order 0, group 000000-00: incarnation 1, and 4",
        "order 1, group 000000-01: incarnation 1, and 4",
    ]
    other = [replace(first[0], group_digest="odd")]
    assert compare(first, other) == [
        "2 groups were consumed, and 1",
        f"order 0, group 000000-00: group_digest {'g' * 32!r}, and 'odd'",
    ]
