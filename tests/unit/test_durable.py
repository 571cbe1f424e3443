"""Files that are whole or not there: names, errors of a full disk, and what is left behind."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest

from rlvid import durable
from rlvid.durable import DiskFullError, is_disk_full


def test_file_of_many_parts_has_their_digest_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    digest = durable.write_file(path, (b"one", memoryview(b"two"), b""))
    assert path.read_bytes() == b"onetwo"
    assert digest == durable.digest_file(path)
    assert durable.digest_file(path, skip_end=3) != digest
    assert list(tmp_path.iterdir()) == [path]


def test_writer_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    """Parts are made while the file is written, and what makes them may fail."""
    path = tmp_path / "file"
    durable.write_file(path, (b"old",))
    with pytest.raises(FileNotFoundError):
        durable.write_file(path, durable.read_chunks(tmp_path / "missing", 3))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_known_however_it_is_wrapped() -> None:
    """safetensors keeps the text only, Ray a cause, and a quota is a full disk too."""
    full = OSError(errno.ENOSPC, "No space left on device")
    assert is_disk_full(full)
    assert is_disk_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert is_disk_full(ValueError("I/O error: No space left on device (os error 28)"))
    wrapped = RuntimeError("the rank failed")
    wrapped.__cause__ = full
    assert is_disk_full(wrapped)
    wrapped.__cause__ = wrapped
    assert not is_disk_full(wrapped)
    assert not is_disk_full(OSError(errno.EIO, "Input/output error"))


def test_error_of_a_full_disk_names_folder_bytes_and_a_way_out(tmp_path: Path) -> None:
    """It comes from a process of its own, so it must survive the way to the driver."""
    with (
        pytest.raises(DiskFullError) as caught,
        durable.full_disk_is_named(tmp_path / "new", "writing a group", 12_345_678),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    text = str(pickle.loads(pickle.dumps(caught.value)))
    assert text.startswith(f"writing a group: the disk of '{tmp_path / 'new'}' is full: ")
    assert "needs at least 12,345,678 bytes" in text
    assert " are free. " in text
    assert "Make room there" in text
