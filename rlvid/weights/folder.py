"""Publishes as files in a folder that learner and actors share: no Ray on the actors' side.

    <folder>/<incarnation>-<version>/bucket-00000.bin ... manifest.msgpack

Each rank writes its buckets into a folder of a temporary name; the one who has the manifest adds it
and renames. So a folder of a publish is whole, and what a reader takes is verified all the same.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlvid.durable import make_folder, sync, write_file
from rlvid.records import WeightsManifest
from rlvid.weights.buckets import Bucket
from rlvid.weights.errors import WeightsError
from rlvid.weights.manifest import manifest_from_bytes, manifest_to_bytes

KEEP = 2
"""Publishes that stay: the newest, and the one that a slow actor may still be reading."""
MANIFEST_FILE = "manifest.msgpack"
_NAME = re.compile(r"(\d{6})-(\d{8})")
_TEMPORARY = ".writing-"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderPart:
    """Says in which folder the buckets of a publish lie."""

    path: str

    def open(self, manifest: WeightsManifest) -> FolderSource:
        """Reach the files.

        Raises:
            WeightsError: there is no whole publish, or another one.
        """
        found = read_manifest(Path(self.path))
        if found != manifest:
            raise WeightsError(
                f"weights version {manifest.version}: {self.path}: expected the publish with "
                f"digest {manifest.digest}, got version {found.version} with {found.digest}"
            )
        return FolderSource(Path(self.path))


class FolderSource:
    """Reads buckets from files straight into where they are wanted.

    They are not mapped: a mapped file that is deleted on a network file system ends the reader.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def view(self, index: int) -> None:
        return None

    def receive(self, index: int, out: Tensor) -> None:
        path = bucket_path(self._folder, index)
        host = out if out.device.type == "cpu" else torch.empty_like(out, device="cpu")
        try:
            with path.open("rb", buffering=0) as file:
                num_read = _read_all(file.fileno(), host)
                is_longer = bool(file.read(1))
        except OSError as error:
            raise WeightsError(
                f"weights: bucket {index}: cannot read {path}: {error}; fetch the newest publish"
            ) from error
        if num_read != out.numel() or is_longer:
            raise WeightsError(
                f"weights: bucket {index}: {path}: expected {out.numel()} bytes, "
                f"got {'more' if is_longer else num_read}; fetch it again"
            )
        if host is not out:
            out.copy_(host)

    def close(self) -> None:
        """Nothing is held open between buckets."""


def begin_publish(folder: Path, *, incarnation: int, version: int) -> Path:
    """Return an empty folder for the buckets of a publish; of the same one it removes a rest."""
    make_folder(folder)
    temporary = folder / f"{_TEMPORARY}{_name(incarnation, version)}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    return temporary


def write_bucket(temporary: Path, index: int, bucket: Bucket) -> None:
    """Write one bucket and wait until the disk has it.

    Raises:
        DiskFullError: there was no room.
    """
    write_file(bucket_path(temporary, index), [bucket.data], num_bytes=bucket.nbytes)


def commit_publish(folder: Path, manifest: WeightsManifest) -> FolderPart:
    """Seal the buckets with their manifest, make them visible, and drop what is older than KEEP."""
    temporary = folder / f"{_TEMPORARY}{_name(*manifest.order)}"
    write_file(temporary / MANIFEST_FILE, [manifest_to_bytes(manifest)])
    sync(temporary)
    target = folder / _name(*manifest.order)
    if target.exists():  # of a driver that died after the rename, and published again
        shutil.rmtree(target)
    temporary.rename(target)
    sync(folder)
    for old in list_publishes(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return FolderPart(path=str(target))


def list_publishes(folder: Path) -> list[Path]:
    """Return the folders of whole publishes, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def newest_publish(folder: Path) -> tuple[WeightsManifest, FolderPart]:
    """Return the newest publish, for an actor that has no driver to tell it.

    Raises:
        WeightsError: there is none, or its manifest is damaged.
    """
    publishes = list_publishes(folder)
    if not publishes:
        raise WeightsError(f"weights: {folder} holds no publish; start the learner first")
    return read_manifest(publishes[-1]), FolderPart(path=str(publishes[-1]))


def read_manifest(path: Path) -> WeightsManifest:
    """Read the manifest of a publish's folder.

    Raises:
        WeightsError: it is not there or damaged.
    """
    try:
        return manifest_from_bytes((path / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise WeightsError(f"weights: no publish in {path}: {error}") from error


def bucket_path(folder: Path, index: int) -> Path:
    return folder / f"bucket-{index:05d}.bin"


def _name(incarnation: int, version: int) -> str:
    return f"{incarnation:06d}-{version:08d}"


def _read_all(descriptor: int, host: Tensor) -> int:
    """Fill `host` from a file; return the bytes read, fewer where the file ends."""
    view = host.numpy().data
    num_read = 0
    while num_read < len(view):
        count = os.readv(descriptor, [view[num_read:]])
        if count == 0:
            break
        num_read += count
    return num_read
