"""Where the ledger may live: SQLite's write-ahead log needs a file system of this machine.

On a network file system its locks and shared memory do not hold: the ledger then lives in this
machine's temporary folder, and snapshots of it go into each checkpoint and into the run folder.
"""

from __future__ import annotations

import ctypes
import getpass
import hashlib
import logging
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rlvid import durable

logger = logging.getLogger(__name__)

LEDGER = "ledger.sqlite"
_PROBE = ".sqlite-probe-"
_NETWORK = {
    0x6969: "NFS",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x517B: "SMB",
    0x65735546: "FUSE",
    0x19830326: "BeeGFS",
    0x00C36400: "Ceph",
    0x01021997: "9p",
    0x5346414F: "AFS",
    0x6B414653: "kAFS",
    0xAAD7AAEA: "PanFS",
    0x7461636F: "OCFS2",
    0x01161970: "GFS2",
}
"""Numbers of statfs(2) and of the vendors' headers. FUSE may be local; who knows is its maker."""


class LocalDiskError(ValueError):
    """There is no folder in which SQLite works; the message names what was tried."""


def file_system(path: Path) -> str:
    """Return the name of a network file system that holds `path`, "" for a local one."""
    return _NETWORK.get(_magic(_existing(path)), "")


def is_local(path: Path) -> bool:
    """True where `path` lies, or would lie, on a disk of this machine."""
    return not file_system(path)


def probe_sqlite(folder: Path) -> str | None:
    """Try SQLite's write-ahead log with two connections; return what does not work, else None."""
    for leftover in folder.glob(f"{_PROBE}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=_PROBE, dir=folder))
    path = place / "probe.sqlite"
    try:
        first, second = (sqlite3.connect(path, timeout=0.0, isolation_level=None) for _ in "ab")
        try:
            return _probe(first, second)
        finally:
            first.close()
            second.close()
    except sqlite3.Error as error:
        return f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def ledger_home(run_folder: Path) -> Iterator[Path]:
    """Yield where to open the ledger of a run; afterwards it, or a copy, is in the run folder.

    The one in the run folder is the ledger itself where that is on a local disk, and was one of its
    snapshots where it is not: then the newest is taken, of those in the checkpoints too.
    """
    run_folder = run_folder.resolve()
    snapshots = [run_folder / LEDGER, *run_folder.glob(f"checkpoints/step-*/{LEDGER}")]
    there = [path for path in snapshots if path.is_file()]
    newest = max(there, key=lambda path: path.stat().st_mtime_ns, default=None)
    path = ledger_path(run_folder, snapshot=newest)
    try:
        yield path
    finally:
        if path.parent != run_folder and path.exists():
            with closing(sqlite3.connect(path)) as database:
                snapshot(database, run_folder / LEDGER)


def ledger_path(run_folder: Path, *, snapshot: Path | None = None) -> Path:
    """Return where the ledger of a run is to be opened; the folder is there and SQLite works in it.

    In the run folder where that is on a local disk. Else in a temporary folder of this machine,
    which starts from `snapshot`: what an earlier driver left there may be older than what one on
    another machine did since.

    Args:
        snapshot: the newest one, of a checkpoint or of the run folder; None for a new run.

    Raises:
        LocalDiskError: SQLite works neither there nor in the temporary folder.
    """
    run_folder = run_folder.resolve()
    durable.make_folder(run_folder)
    network = file_system(run_folder)
    problem = f"it is on {network}" if network else probe_sqlite(run_folder)
    path = run_folder / LEDGER
    if problem is None:
        if snapshot is not None and not path.exists():
            _copy(snapshot, path)
        return path
    local = _temporary_folder(run_folder)
    second = probe_sqlite(local)
    if second is not None:
        raise LocalDiskError(
            f"ledger: SQLite works neither in the run folder {str(run_folder)!r} ({problem}) nor "
            f"in {str(local)!r} ({second}). Set TMPDIR to a folder on a disk of this machine"
        )
    logger.warning("the ledger is kept in folder=%s since %s: %s", local, run_folder, problem)
    for leftover in local.glob(f"{LEDGER}*"):
        leftover.unlink()
    if snapshot is not None:
        _copy(snapshot, local / LEDGER)
    return local / LEDGER


def snapshot(connection: sqlite3.Connection, path: Path) -> None:
    """Write a copy of an open database as one file: whole and synced, or not there at all.

    It is made in memory, since SQLite's locks may not hold where the target is.

    Raises:
        DiskFullError: there is no room.
    """
    data = bytearray(connection.serialize())
    # The header says whether there is a log beside the file (SQLite's file format, section 1.3.3).
    # With one, whoever looks into a checkpoint's ledger would leave files there, and the checkpoint
    # would not verify any more.
    data[18:20] = b"\x01\x01"
    durable.write_file(path, (data,), num_bytes=len(data))


def _copy(source: Path, target: Path) -> None:
    size = source.stat().st_size
    durable.write_file(target, durable.read_chunks(source, size), num_bytes=size)


def _probe(first: sqlite3.Connection, second: sqlite3.Connection) -> str | None:
    mode = first.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        return f"expected journal mode 'wal', got {mode!r}"
    first.execute("CREATE TABLE probe (number INTEGER)")
    first.execute("INSERT INTO probe VALUES (7)")
    row = second.execute("SELECT number FROM probe").fetchone()
    if row != (7,):
        return f"a second connection does not see what the first wrote: expected (7,), got {row}"
    first.execute("BEGIN IMMEDIATE")
    try:
        second.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        return None if "locked" in str(error) else str(error)
    return "locks do not hold: two connections write at once"


def _temporary_folder(run_folder: Path) -> Path:
    """One for each run and user; nobody else may look into it."""
    name = hashlib.blake2b(str(run_folder).encode(), digest_size=8).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"rlvid-{getpass.getuser()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise LocalDiskError(
            f"ledger: {str(folder)!r} belongs to another user; set TMPDIR to a folder of your own"
        )
    return folder


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _magic(path: Path) -> int:
    """Return f_type of statfs(2), the first word of its answer; 0 where there is no such call."""
    if sys.platform != "linux":
        return 0
    answer = (ctypes.c_long * 64)()  # the structure has 120 bytes
    library = ctypes.CDLL(None, use_errno=True)
    if library.statfs(os.fsencode(path), ctypes.byref(answer)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return int(answer[0]) & 0xFFFFFFFF
