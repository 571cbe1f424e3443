"""Manifest and store: what is written comes back, and a file stands for one plan only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from rlvid.data.engine.manifest import read_manifest, read_summary, write_manifest
from rlvid.data.engine.records import ClipRecord
from rlvid.data.engine.store import ClipStore, open_rows


def _record(number: int, **changes: object) -> ClipRecord:
    record = ClipRecord(
        clip_id=f"{number:032x}",
        kind="synthetic",
        text="a red ball falls to the left",
        prompt_id="p",
        dimension="motion",
        facts={"colour": "red", "object": "ball"},
        origin="policy:abc",
        seed=2**62 + number,
        file="clips/000/000000.safetensors",
        row=number % 3,
        content="c",
        scores={"motion": 0.25, "camera": 1.0},
        reward=0.5,
    )
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


def test_manifest_round_trip(tmp_path: Path) -> None:
    rows = [_record(n) for n in range(5)]
    rows += [_record(5, kind="real", dimension="", scores={}, reward=None)]
    digest = write_manifest(tmp_path, rows, rows_per_part=4, made_by={"policy": "abc"})
    assert list(read_manifest(tmp_path)) == rows
    assert list(read_manifest(tmp_path, kinds=["real"])) == rows[5:]
    summary = read_summary(tmp_path)
    assert summary["digest"] == digest
    assert summary["num_parts"] == 2
    assert summary["num_clips"] == {"synthetic": 5, "real": 1}


def test_digest_is_of_the_rows_and_not_of_the_files(tmp_path: Path) -> None:
    rows = [_record(n) for n in range(5)]
    other = [_record(0, facts={"object": "ball", "colour": "red"}), *rows[1:]]
    digests = {
        write_manifest(tmp_path / name, given, rows_per_part=parts, made_by={"seconds": parts})
        for name, given, parts in (("a", rows, 2), ("b", other, 5))
    }
    assert len(digests) == 1
    changed = [*rows[:4], _record(4, reward=0.5000001)]
    assert write_manifest(tmp_path / "c", changed, rows_per_part=5, made_by={}) not in digests


def test_a_shorter_manifest_leaves_no_parts_of_a_longer_one(tmp_path: Path) -> None:
    write_manifest(tmp_path, [_record(n) for n in range(6)], rows_per_part=2, made_by={})
    write_manifest(tmp_path, [_record(n) for n in range(3)], rows_per_part=2, made_by={})
    assert len(list((tmp_path / "manifest").iterdir())) == 2
    assert len(list(read_manifest(tmp_path))) == 3


def test_an_unfinished_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset.json"):
        list(read_manifest(tmp_path))
    write_manifest(tmp_path, [_record(0)], rows_per_part=1, made_by={})
    (tmp_path / "manifest" / "part-00000.parquet").unlink()
    with pytest.raises(ValueError, match="part-00000.parquet is missing"):
        list(read_manifest(tmp_path))


def test_a_file_stands_for_one_plan(tmp_path: Path) -> None:
    store = ClipStore(tmp_path)
    latents = torch.randn(3, 4, 2, 2, 2)
    records = [_record(n, file=store.file(7), row=n) for n in range(3)]
    assert not store.has(7, "plan")
    store.write(7, "plan", latents, records)
    assert store.has(7, "plan")
    assert not store.has(7, "another policy's plan")
    assert list(store.records([7])) == records
    rows = open_rows(tmp_path, records[1].file)
    assert torch.equal(rows[records[1].row], latents[1])


@pytest.mark.parametrize("damage", ["cut", "empty", "scribbled"])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, damage: str) -> None:
    store = ClipStore(tmp_path)
    store.write(0, "plan", torch.randn(2, 4, 2, 2, 2), [_record(0), _record(1)])
    path = tmp_path / store.file(0)
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-5], "empty": b"", "scribbled": b"\xff" * 64}[damage])
    assert not store.has(0, "plan")
    with pytest.raises(ValueError, match="missing or damaged"):
        list(store.records([0]))
