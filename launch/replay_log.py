"""What the learner consumed, in order: an append-only file by which a run can be done again.

    magic | batch | batch | ...     batch: length | xxh3-64 of the records | records, msgpack

An overlapped run depends on which weights sampled which group and in which order groups came; with
this log the same groups, sampled with the same versions in the same order, give the same weights.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import msgpack
import xxhash

from rlvid import durable

logger = logging.getLogger(__name__)

_MAGIC = b"RLVLOG01"
_HEAD = struct.Struct("<IQ")
_MAX_BATCH = 2**24
"""No batch is longer; a length above it is damage."""
COMPARED = ("order", "group_id", "step", "policy_version", "group_digest")
"""What two runs of one recipe agree in, though their learners started differently often."""


class ReplayLogError(ValueError):
    """A replay log is damaged before its end, or is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRecord:
    """A group that the learner consumed."""

    order: int
    """Place in the run, from 0."""
    group_id: str
    step: int
    policy_version: int
    """Of the weights that sampled it."""
    incarnation: int
    """Starts of the learner until those weights were published."""
    weights_digest: str
    group_digest: str
    """See `rlvid.group_digest`."""


class ReplayLog:
    """The log of a run, open for writing by its driver."""

    def __init__(self, path: Path, descriptor: int, batches: list[_Batch]) -> None:
        self.path = path
        self._descriptor = descriptor
        self._batches = batches

    @property
    def records(self) -> list[ReplayRecord]:
        """Everything in it, in order."""
        return [record for batch in self._batches for record in batch.records]

    def append(self, records: Sequence[ReplayRecord]) -> None:
        """Write a batch, all of it or nothing; on return it survives a power loss.

        Raises:
            DiskFullError: there is no room; the log is as it was.
        """
        data = _pack(records)
        start = self._end
        try:
            with durable.full_disk_is_named(self.path.parent, "the replay log", len(data)):
                view = memoryview(data)
                while view:
                    view = view[os.write(self._descriptor, view) :]
                os.fsync(self._descriptor)
        except (OSError, durable.DiskFullError):
            os.ftruncate(self._descriptor, start)
            raise
        self._batches.append(_Batch(tuple(records), start + len(data)))

    def forget_from(self, step: int) -> int:
        """Remove the records of `step` and later, which a resumed run consumes again."""
        before = len(self.records)
        kept = [record for record in self.records if record.step < step]
        if len(kept) == before:
            return 0
        # By a new file, since a step may begin inside a batch.
        os.close(self._descriptor)
        durable.write_file(self.path, (_MAGIC, _pack(kept)) if kept else (_MAGIC,))
        self._batches = _parse(self.path)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)
        return before - len(kept)

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def _end(self) -> int:
        return self._batches[-1].end if self._batches else len(_MAGIC)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one append wrote, and where it ends in the file."""

    records: tuple[ReplayRecord, ...]
    end: int


def open_replay_log(path: Path) -> ReplayLog:
    """Open or create a log for appending; a tail that a crash tore is cut off.

    Raises:
        ReplayLogError: it is no log, or is damaged before its end.
    """
    with durable.full_disk_is_named(path.parent, "the replay log"):
        durable.make_folder(path.parent)
    if not path.exists():
        durable.write_file(path, (_MAGIC,))
    batches = _parse(path)
    end = batches[-1].end if batches else len(_MAGIC)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    torn = os.fstat(descriptor).st_size - end
    if torn:
        logger.warning("cut a torn tail off the replay log path=%s bytes=%d", path, torn)
        os.ftruncate(descriptor, end)
        with durable.full_disk_is_named(path.parent, "the replay log"):
            os.fsync(descriptor)
    return ReplayLog(path, descriptor, batches)


def read_replay_log(path: Path) -> list[ReplayRecord]:
    """Return what is whole of a log, and change nothing; it may be written meanwhile.

    Raises:
        ReplayLogError: it is no log, or is damaged before its end.
    """
    return [record for batch in _parse(path) for record in batch.records]


def compare(
    first: Sequence[ReplayRecord],
    second: Sequence[ReplayRecord],
    *,
    names: Sequence[str] = COMPARED,
) -> list[str]:
    """Return in words where two logs differ, nothing where they agree."""
    differences = []
    if len(first) != len(second):
        differences.append(f"{len(first)} groups were consumed, and {len(second)}")
    for one, other in zip(first, second, strict=False):
        differences += [
            f"order {one.order}, group {one.group_id}: {name} {getattr(one, name)!r}, "
            f"and {getattr(other, name)!r}"
            for name in names
            if getattr(one, name) != getattr(other, name)
        ]
    return differences


def _pack(records: Sequence[ReplayRecord]) -> bytes:
    payload: bytes = msgpack.packb([asdict(record) for record in records])
    return _HEAD.pack(len(payload), xxhash.xxh3_64_intdigest(payload)) + payload


def _parse(path: Path) -> list[_Batch]:
    """Return the batches up to the first that is not whole."""
    data = path.read_bytes()
    if data[: len(_MAGIC)] != _MAGIC:
        raise ReplayLogError(
            f"replay log {str(path)!r}: expected a file that starts with {_MAGIC!r}, got "
            f"{data[: len(_MAGIC)]!r}; name another file"
        )
    batches: list[_Batch] = []
    end = len(_MAGIC)
    while (payload := _payload(data, end)) is not None:
        end += _HEAD.size + len(payload)
        batches.append(_Batch(_unpack(path, payload), end))
    # A crash tears the last batch only. A whole one behind the damage says it was no crash.
    rest = range(end + 1, len(data) - _HEAD.size)
    behind = next((place for place in rest if _payload(data, place) is not None), None)
    if behind is not None:
        raise ReplayLogError(
            f"replay log {str(path)!r}: batch {len(batches)} at byte {end} is damaged and "
            f"whole ones follow at byte {behind}; restore the file from a backup, or start a new "
            "run folder"
        )
    return batches


def _payload(data: bytes, offset: int) -> bytes | None:
    """Return the payload of the batch at `offset`, None where no whole one is."""
    if offset + _HEAD.size > len(data):
        return None
    length, digest = _HEAD.unpack_from(data, offset)
    start = offset + _HEAD.size
    if not 0 < length <= min(_MAX_BATCH, len(data) - start):
        return None
    payload = data[start : start + length]
    return payload if xxhash.xxh3_64_intdigest(payload) == digest else None


def _unpack(path: Path, payload: bytes) -> tuple[ReplayRecord, ...]:
    names = {field.name for field in fields(ReplayRecord)}
    trees = msgpack.unpackb(payload)
    for tree in trees:
        if set(tree) != names:
            raise ReplayLogError(
                f"replay log {str(path)!r}: expected records of {sorted(names)}, got "
                f"{sorted(tree)}; it was written by another version of rlvid"
            )
    return tuple(ReplayRecord(**tree) for tree in trees)
