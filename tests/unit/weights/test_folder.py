"""Publishes as files: whole or not there, and verified like all others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlvid.records import WeightsManifest
from rlvid.testing import tiny_model
from rlvid.weights import WeightsError, WeightsHolder, digest_tensors, trainable_parameters
from rlvid.weights.folder import (
    MANIFEST_FILE,
    FolderPart,
    begin_publish,
    bucket_path,
    commit_publish,
    list_publishes,
    newest_publish,
    write_bucket,
)
from tests.unit.actors.worker_weights import published


def _write(folder: Path, version: int, incarnation: int = 0) -> tuple[WeightsManifest, FolderPart]:
    manifest, buckets = published(version, incarnation=incarnation)
    temporary = begin_publish(folder, incarnation=incarnation, version=version)
    for index, bucket in enumerate(buckets):
        write_bucket(temporary, index, bucket)
    return manifest, commit_publish(folder, manifest)


def _holder() -> WeightsHolder:
    return WeightsHolder(tiny_model(0).transformer, mode="full", actor_id="a")


def test_actor_without_ray_takes_the_newest_publish(tmp_path: Path) -> None:
    """All it knows is the folder; the bytes are those of the object store's path."""
    model, other = tiny_model(0).transformer, tiny_model(0).transformer
    holder = WeightsHolder(model, mode="full", actor_id="a")
    _write(tmp_path, 1)
    _write(tmp_path, 2)
    manifest, part = newest_publish(tmp_path)
    holder.stage(manifest, [part])
    holder.swap()
    holder.check_live()
    direct = WeightsHolder(other, mode="full", actor_id="b")
    direct.stage(*published(2))
    direct.swap()
    assert holder.version == 2
    assert digest_tensors(trainable_parameters(model, "full")) == digest_tensors(
        trainable_parameters(other, "full")
    )


def test_two_publishes_stay(tmp_path: Path) -> None:
    """The disk must not fill, and a slow reader may still be at the one before."""
    for version in range(4):
        _write(tmp_path, version)
    _write(tmp_path, 2, incarnation=1)
    assert [path.name for path in list_publishes(tmp_path)] == [
        "000000-00000003",
        "000001-00000002",
    ]


def test_unfinished_publish_is_not_seen(tmp_path: Path) -> None:
    """A learner that dies while it writes leaves a temporary folder, which the next one clears."""
    manifest, buckets = published(1)
    temporary = begin_publish(tmp_path, incarnation=0, version=1)
    write_bucket(temporary, 0, buckets[0])
    with pytest.raises(WeightsError, match="holds no publish"):
        newest_publish(tmp_path)
    assert not list(begin_publish(tmp_path, incarnation=0, version=1).iterdir())


@pytest.mark.parametrize("harm", ["flip", "truncate", "extend", "remove", "swap", "manifest"])
def test_damaged_files_are_refused(tmp_path: Path, harm: str) -> None:
    """Disks and network file systems lose and mix up bytes, too."""
    manifest, part = _write(tmp_path, 1)
    first, second = (bucket_path(Path(part.path), index) for index in range(2))
    content = bytearray(first.read_bytes())
    if harm == "flip":
        content[100] ^= 4
        first.write_bytes(content)
    elif harm == "truncate":
        first.write_bytes(content[:-1])
    elif harm == "extend":
        first.write_bytes(content + b"\0")
    elif harm == "remove":
        first.unlink()
    elif harm == "swap":
        first.write_bytes(second.read_bytes())
    else:
        path = Path(part.path) / MANIFEST_FILE
        path.write_bytes(path.read_bytes()[:-1])
    holder = _holder()
    with pytest.raises(WeightsError):
        holder.stage(manifest, [part])
    assert holder.newest == (-1, -1)


def test_folder_of_another_publish_is_refused(tmp_path: Path) -> None:
    """The driver's manifest says what the folder must hold."""
    _, part = _write(tmp_path, 1)
    with pytest.raises(WeightsError, match="expected the publish with digest"):
        _holder().stage(published(2)[0], [part])


def test_publish_that_is_deleted_meanwhile_is_an_error_of_weights(tmp_path: Path) -> None:
    """The caller then fetches the newest; a missing file must not look like a programming error."""
    manifest, part = _write(tmp_path, 1)
    source = part.open(manifest)
    for version in (2, 3):
        _write(tmp_path, version)
    with pytest.raises(WeightsError, match="fetch the newest publish"):
        source.receive(0, torch.empty(manifest.buckets[0].num_bytes, dtype=torch.uint8))
