"""Where the ledger may live, and copies of it that are whole."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from rlvid.launch import local_disk
from rlvid.launch.ledger import open_ledger
from rlvid.launch.local_disk import (
    LocalDiskError,
    file_system,
    is_local,
    ledger_home,
    ledger_path,
    probe_sqlite,
    snapshot,
)
from rlvid.learners import checkpoint


def _fill(path: Path, number: int) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE IF NOT EXISTS numbers (number INTEGER)")
    database.execute("DELETE FROM numbers")
    database.execute("INSERT INTO numbers VALUES (?)", (number,))
    database.commit()
    return database


def _number(path: Path) -> int:
    database = sqlite3.connect(path)
    [(number,)] = database.execute("SELECT number FROM numbers")
    database.close()
    return int(number)


@pytest.fixture
def on_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A run folder for which the system answers NFS, and a temporary folder for which it does not.

    No test machine has a network file system; the number is statfs(2)'s.
    """
    shared, local = tmp_path / "shared", tmp_path / "local"
    local.mkdir()
    real = local_disk._magic
    monkeypatch.setattr(
        local_disk, "_magic", lambda path: 0x6969 if path.is_relative_to(shared) else real(path)
    )
    monkeypatch.setattr(tempfile, "tempdir", str(local))
    shared.mkdir()
    return shared


def test_this_machines_disk_is_local_and_sqlite_works_there(tmp_path: Path) -> None:
    """Also for a folder that is still to be made; the probe leaves nothing behind."""
    assert is_local(tmp_path / "not" / "there")
    assert probe_sqlite(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    assert ledger_path(tmp_path / "run") == (tmp_path / "run" / "ledger.sqlite").resolve()


def test_number_of_the_file_system_is_the_systems() -> None:
    """/proc is of one type on every Linux, so the structure is read in the right place."""
    if not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    assert local_disk._magic(Path("/proc")) == 0x9FA0


def test_ledger_of_a_run_on_a_network_starts_from_the_snapshot(on_network: Path) -> None:
    """What a driver left on this machine is older than what one on another did since."""
    run = on_network / "run"
    assert file_system(run) == "NFS"
    path = ledger_path(run)
    assert not path.is_relative_to(on_network)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    first = _fill(path, 1)
    first.close()
    second = _fill(on_network / "from elsewhere", 2)
    snapshot(second, run / "ledger.sqlite")
    second.close()
    again = ledger_path(run, snapshot=run / "ledger.sqlite")
    assert again == path
    assert _number(again) == 2
    assert not ledger_path(run).exists()
    assert ledger_path(on_network / "other") != path


def test_no_place_for_sqlite_is_an_error_that_says_where_it_was_tried(
    on_network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_disk, "probe_sqlite", lambda folder: "locks do not hold")
    with pytest.raises(LocalDiskError, match=r"it is on NFS.*locks do not hold.*Set TMPDIR"):
        ledger_path(on_network / "run")


def test_probe_finds_locks_that_do_not_hold(tmp_path: Path) -> None:
    """Two databases stand in for two connections whose locks do not see each other."""
    first, second = (
        sqlite3.connect(tmp_path / name, isolation_level=None, timeout=0.0) for name in "ab"
    )
    second.execute("CREATE TABLE probe (number INTEGER)")
    second.execute("INSERT INTO probe VALUES (7)")
    assert local_disk._probe(first, second) == ("locks do not hold: two connections write at once")
    first.close()
    second.close()


def test_snapshot_is_one_file_of_what_was_committed(tmp_path: Path) -> None:
    """While the ledger is open, with its log not yet folded in; and again over the first."""
    target = tmp_path / "checkpoint" / "ledger.sqlite"
    target.parent.mkdir()
    for number in (1, 2):
        database = _fill(tmp_path / "ledger.sqlite", number)
        snapshot(database, target)
        assert (tmp_path / "ledger.sqlite-wal").stat().st_size > 0
        database.close()
        with closing(sqlite3.connect(target)) as copy:
            assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert [path.name for path in target.parent.iterdir()] == ["ledger.sqlite"]
        assert _number(target) == number


def test_ledger_goes_home_when_the_run_ends(on_network: Path) -> None:
    """And the next driver, on whatever machine, starts from the newest copy there is."""
    run = on_network / "run"
    with ledger_home(run) as path:
        _fill(path, 1).close()
    assert _number(run / "ledger.sqlite") == 1
    saved = run / "checkpoints" / "step-00000002"
    saved.mkdir(parents=True)
    database = _fill(on_network / "other", 2)
    snapshot(database, saved / "ledger.sqlite")
    database.close()
    with ledger_home(run) as path:
        assert _number(path) == 2
    assert _number(run / "ledger.sqlite") == 2


def test_looking_into_a_checkpoints_ledger_leaves_the_checkpoint_whole(tmp_path: Path) -> None:
    """A copy that remembers its log makes SQLite put one beside it, and no manifest lists that."""
    with checkpoint.writing(tmp_path / "checkpoints", step=1, keep=1) as temporary:
        ledger = open_ledger(tmp_path / "ledger.sqlite")
        ledger.plan("a", 0, "p")
        ledger.snapshot(temporary / "ledger.sqlite")
        ledger.close()
    found = checkpoint.find_latest(tmp_path / "checkpoints")
    assert found is not None
    database = sqlite3.connect(found.path / "ledger.sqlite")
    assert database.execute("SELECT COUNT(*) FROM groups").fetchone() == (1,)
    assert sorted(path.name for path in found.path.iterdir()) == ["ledger.sqlite", "manifest.json"]
    database.close()
