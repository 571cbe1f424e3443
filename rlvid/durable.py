"""Files that are whole or not there at all, at whatever moment the machine stops.

A name is given to a file only after its bytes are on the disk, and a folder is synced after each
change of its names. Needs no torch: checkpoints, groups and logs are written through it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

CHUNK = 8 * 2**20
TEMPORARY = ".writing"
"""End of the names of files that are being written."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "database or disk is full")


class DiskFullError(RuntimeError):
    """The disk has no room; the message names the folder, the bytes needed and the bytes free."""


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder in `folder`, and itself; what is flushed already costs little.

    On a shared file system a writer calls it for its own files: another machine's fsync does not
    flush what this one holds back.
    """
    for path in [*sorted(folder.rglob("*")), folder]:
        if path.is_dir() or path.is_file():
            sync(path)


def make_folder(path: Path) -> None:
    """Create a folder and its parents; all of them are there after a power loss too."""
    # The last one always: a process before this one may have died between the two calls below.
    unsynced = [path]
    while not unsynced[-1].is_dir():
        unsynced.append(unsynced[-1].parent)
    for folder in reversed(unsynced):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def write_file(
    path: Path, parts: Iterable[bytes | bytearray | memoryview], *, num_bytes: int = 0
) -> str:
    """Write a file under a temporary name, sync, rename; return the xxh3-128 of its bytes.

    Args:
        parts: written one after the other, so that a large file is never one object.
        num_bytes: of all parts where known, for the message of a full disk.

    Raises:
        DiskFullError: there was no room; nothing of the file is left.
    """
    # Of this process: one that was stopped and replaced, and wakes up, spoils no other's file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    hasher = xxhash.xxh3_128()
    try:
        with full_disk_is_named(path.parent, f"writing {path.name}", num_bytes):
            with temporary.open("wb", buffering=0) as file:
                for part in parts:
                    _write_all(file.fileno(), memoryview(part))
                    hasher.update(part)
                os.fsync(file.fileno())
            temporary.replace(path)
            sync(path.parent)
    except (OSError, DiskFullError):
        temporary.unlink(missing_ok=True)
        raise
    return str(hasher.hexdigest())


def is_temporary(path: Path) -> bool:
    """True for the name of a file that was being written; a crash leaves it behind."""
    return path.name.startswith(".") and path.name.endswith(TEMPORARY)


def is_disk_full(error: BaseException | None) -> bool:
    """True when the error, or one that led to it, is that a disk or a quota is full.

    safetensors, Rust's libraries and SQLite raise errors of their own, which keep a text only.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(text in str(error) for text in _FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def full_disk_is_named(folder: Path, doing: str, num_bytes: int = 0) -> Iterator[None]:
    """Turn the system's error of a full disk into one that says what to do about it.

    Raises:
        DiskFullError: the block met a full disk.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(folder, doing, num_bytes) from error
        raise


def disk_full(folder: Path, doing: str, num_bytes: int) -> DiskFullError:
    """Return the error of a full disk; `num_bytes` 0 is a size that nobody knows."""
    needed = f"at least {num_bytes:,} bytes" if num_bytes else "an unknown number of bytes"
    return DiskFullError(
        f"{doing}: the disk of {str(folder)!r} is full: needs {needed}, "
        f"{free_bytes(folder):,} are free. Make room there, or move the run folder to another "
        "disk; then resume the run, everything that was finished is intact"
    )


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write there, or where it is to be created."""
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def digest_file(path: Path, *, skip_end: int = 0) -> str:
    """Return the xxh3-128 of a file's bytes, without the last `skip_end`."""
    hasher = xxhash.xxh3_128()
    for chunk in read_chunks(path, path.stat().st_size - skip_end):
        hasher.update(chunk)
    return str(hasher.hexdigest())


def read_chunks(path: Path, num_bytes: int) -> Iterator[bytes]:
    """Yield the first `num_bytes` of a file."""
    with path.open("rb") as file:
        while num_bytes > 0 and (chunk := file.read(min(CHUNK, num_bytes))):
            num_bytes -= len(chunk)
            yield chunk


def _write_all(descriptor: int, part: memoryview) -> None:
    """A write may take less than it was given, at the end of a disk and above 2 GiB."""
    part = part.cast("B")
    while part:
        part = part[os.write(descriptor, part) :]
