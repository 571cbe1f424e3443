"""Scored groups on disk, one file each, so that a restart samples none of them again.

<folder>/00000012.000012-03.group:
    magic | length of header | header, msgpack: step and records | tensors, safetensors | xxh3-128

A group's tensors are those of its trained steps, so a file is small beside the videos. Files are
never changed once named: checkpoints hold them by hard link. One process writes, any may read.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgpack
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rlvid import durable
from rlvid.launch.record_codec import CodecError, decode, encode
from rlvid.records import RolloutGroup
from rlvid.rewards.scoring import GroupScores

logger = logging.getLogger(__name__)

LINKED = "groups"
"""Folder of a checkpoint that holds the groups."""
DAMAGED = ".damaged"
_MAGIC = b"RLVGRP01"
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = 16
_NAME = re.compile(r"(\d{8})\.([A-Za-z0-9_-]+)\.group")


class StoredGroupError(ValueError):
    """A group on disk cannot be read; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGroup:
    """A group that is on the disk."""

    group_id: str
    step: int
    path: Path
    digest: str
    """xxh3-128 of the file before its last 16 bytes, which hold it."""
    num_bytes: int


class GroupStore:
    """The groups of a run in one folder; holds nothing but the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, group: RolloutGroup, scores: GroupScores, *, step: int) -> StoredGroup:
        """Write a group; on return it survives a power loss. A file of its id is replaced.

        Raises:
            DiskFullError: there is no room; nothing of the group is left.
        """
        path = self._path(group.group_id, step)
        head, body = _serialise(group, scores, step)
        hasher = xxhash.xxh3_128()
        for part in (head, body):
            hasher.update(part)
        num_bytes = len(head) + len(body) + _DIGEST_BYTES
        durable.write_file(path, (head, body, hasher.digest()), num_bytes=num_bytes)
        return StoredGroup(
            group_id=group.group_id,
            step=step,
            path=path,
            digest=hasher.hexdigest(),
            num_bytes=num_bytes,
        )

    def read(self, group_id: str) -> tuple[RolloutGroup, GroupScores]:
        """Return a group as it was written, bit for bit.

        Raises:
            StoredGroupError: there is no such group, or its file is damaged.
        """
        found = [path for _, name, path in self._files() if name == group_id]
        if len(found) != 1:
            raise StoredGroupError(
                f"groups {str(self.folder)!r}: expected one file of group {group_id}, "
                f"got {len(found)}; sample it again, its seeds are the recipe's"
            )
        return _deserialise(found[0])

    def index(self, first_step: int = 0) -> dict[int, list[StoredGroup]]:
        """Return what is there and whole of `first_step` and later, by step, in order of ids.

        Reads every byte. What is damaged is moved aside, named in a warning, and not there.
        """
        found: dict[int, list[StoredGroup]] = {}
        for step, group_id, path in self._files():
            if step < first_step:
                continue
            problem, digest = _check(path)
            if problem is not None:
                set_aside(path, problem)
                continue
            stored = StoredGroup(
                group_id=group_id,
                step=step,
                path=path,
                digest=digest,
                num_bytes=path.stat().st_size,
            )
            found.setdefault(step, []).append(stored)
        return found

    def drop_before(self, step: int) -> int:
        """Remove the groups of steps before `step`, return how many; checkpoints keep theirs."""
        old = [path for number, _, path in self._files() if number < step]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def shrink(self, max_bytes: float, before_step: int) -> int:
        """Remove groups of steps before `before_step`, the oldest first, while all take too much.

        Returns:
            The bytes that groups take then.
        """
        files = [(step, path, path.stat().st_size) for step, _, path in self._files()]
        total = sum(size for _, _, size in files)
        for step, path, size in files:
            if step >= before_step or total <= max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total

    def link_into(self, checkpoint: Path, first_step: int) -> int:
        """Put the groups of `first_step` and later into a checkpoint being written.

        By hard link, which takes no room; a copy where the checkpoint is on another disk.

        Returns:
            How many.

        Raises:
            DiskFullError: there is no room for a copy.
        """
        names = [path for step, _, path in self._files() if step >= first_step]
        if not names:
            return 0
        target = checkpoint / LINKED
        with durable.full_disk_is_named(target, "keeping groups in the checkpoint"):
            durable.make_folder(target)
            for path in names:
                _link(path, target / path.name)
            durable.sync(target)
        return len(names)

    def restore_from(self, checkpoint: Path) -> int:
        """Take from a checkpoint every group that is not here, or here damaged; return how many."""
        with durable.full_disk_is_named(self.folder, "taking groups from the checkpoint"):
            durable.make_folder(self.folder)
            sources = GroupStore(checkpoint / LINKED)._files()
            restored = sum(self._restore(source) for _, _, source in sources)
            durable.sync(self.folder)
        return restored

    def _restore(self, source: Path) -> bool:
        path = self.folder / source.name
        if path.exists():
            problem, _ = _check(path)
            if problem is None:
                return False
            set_aside(path, problem)
        problem, _ = _check(source)
        if problem is not None:
            logger.warning("checkpoint's group is damaged path=%s problem=%s", source, problem)
            return False
        _link(source, path)
        return True

    def _path(self, group_id: str, step: int) -> Path:
        name = f"{step:08d}.{group_id}.group"
        if _NAME.fullmatch(name) is None:
            raise ValueError(
                f"groups {str(self.folder)!r}: group id {group_id!r} of step {step} makes no file "
                "name: expected letters, digits, '-' and '_', and a step from 0 to 99999999"
            )
        return self.folder / name

    def _files(self) -> Iterator[tuple[int, str, Path]]:
        """Yield (step, group id, path), sorted."""
        for path in sorted(self.folder.glob("*.group")):
            match = _NAME.fullmatch(path.name)
            if match is not None:
                yield int(match[1]), match[2], path


def open_group_store(folder: Path) -> GroupStore:
    """Create the folder, or clear it of what a killed writer left; for the one who writes."""
    with durable.full_disk_is_named(folder, "the folder of groups"):
        durable.make_folder(folder)
    for path in folder.iterdir():
        if durable.is_temporary(path):
            path.unlink()
    return GroupStore(folder)


def set_aside(path: Path, problem: str) -> None:
    """Rename a damaged file, so that nobody takes it for a group and somebody may look at it."""
    logger.warning("damaged group is set aside path=%s problem=%s", path, problem)
    path.replace(path.with_name(path.name + DAMAGED))


def _serialise(group: RolloutGroup, scores: GroupScores, step: int) -> tuple[bytes, bytes]:
    group_tree, tensors = encode(group)
    scores_tree, _ = encode(scores)
    header = msgpack.packb({"step": step, "group": group_tree, "scores": scores_tree})
    body = save(_as_owned(tensors))
    return _MAGIC + _LENGTH.pack(len(header)) + header, body


def _as_owned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the host, contiguous, and no two in one storage, which safetensors refuses."""
    owned: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        owned[name] = tensor.clone() if place in storages else tensor
        storages.add(place)
    return owned


def _deserialise(path: Path) -> tuple[RolloutGroup, GroupScores]:
    problem, _ = _check(path)
    if problem is not None:
        raise StoredGroupError(f"group {str(path)!r}: {problem}; sample it again")
    with path.open("rb") as file:
        file.seek(len(_MAGIC))
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        head = file.read(length)
        body = file.read(path.stat().st_size - file.tell() - _DIGEST_BYTES)
    try:
        header = msgpack.unpackb(head)
        tensors = load(body)
        group = decode(RolloutGroup, header["group"], tensors)
        return group, decode(GroupScores, header["scores"], tensors)
    except (CodecError, SafetensorError, KeyError, ValueError) as error:
        raise StoredGroupError(
            f"group {str(path)!r}: its bytes are whole and are no group of this version of rlvid "
            f"({error}); sample it again"
        ) from error


def _check(path: Path) -> tuple[str | None, str]:
    """Return what is wrong with a file, None when nothing is, and the digest it holds."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
            size = os.fstat(file.fileno()).st_size
            if magic != _MAGIC or size < len(_MAGIC) + _LENGTH.size + _DIGEST_BYTES:
                return f"expected a group's file, got {size} bytes that start with {magic!r}", ""
            file.seek(-_DIGEST_BYTES, os.SEEK_END)
            expected = file.read().hex()
        got = durable.digest_file(path, skip_end=_DIGEST_BYTES)
    except OSError as error:
        return f"cannot be read ({error})", ""
    if got != expected:
        return f"expected digest {expected}, got {got}", expected
    return None, expected


def _link(source: Path, target: Path) -> None:
    """Hard link, or a synced copy where the file system has none or is another one."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        # EXDEV, EPERM, ENOTSUP, EMLINK: whatever the reason, a copy serves; if not, it says why.
        temporary = target.with_name(f".{target.name}{durable.TEMPORARY}")
        try:
            shutil.copyfile(source, temporary)
            durable.sync(temporary)
            temporary.replace(target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
