"""Sources of every form, and what is wrong in them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlvid.data.intake import Drop, RawClip, read_source, tables
from rlvid.data.intake.records import MAX_FILE_BYTES, MAX_TEXT_BYTES
from tests.unit.data.intake_sets import (
    WRITERS,
    arrow_bytes,
    members_of,
    outcomes_of,
    tar_bytes,
    tiny_pair,
    write_folder,
)

PAIRS = [tiny_pair(index) for index in range(3)]
TEXT_ONLY = (b"x", "a ball")


def found(source: Path) -> list[str]:
    """Return the reasons of what was dropped, and "clip" for what was read."""
    return [item.reason if isinstance(item, Drop) else "clip" for item in read_source(str(source))]


def lines_file(folder: Path, *items: object) -> Path:
    path = folder / "s.jsonl"
    path.write_text("\n".join(json.dumps(item) for item in items), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_holds_the_same_clips(tmp_path: Path, form: str) -> None:
    source = WRITERS[form](tmp_path, PAIRS)
    items = list(read_source(str(source)))
    assert [(item.data, item.text) for item in items if isinstance(item, RawClip)] == PAIRS
    assert len({item.name for item in items}) == len(PAIRS)
    assert all(item.name.startswith(str(tmp_path)) for item in items)


def test_forms_give_the_same_digests_in_the_order_of_the_sources(tmp_path: Path) -> None:
    digests = set()
    for number, write in enumerate(WRITERS.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        kept = outcomes_of(write(folder, PAIRS))
        digests.add(tuple("" if isinstance(item, Drop) else item.digest for item in kept))
    assert len(digests) == 1
    assert "" not in digests.pop()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../a.mp4", "outside_folder"),
        ("b/../../a.mp4", "outside_folder"),
        ("link.mp4", "outside_folder"),
        ("loop.mp4", "missing_file"),
        ("c.mp4", "missing_file"),
        ("a\0.mp4", "missing_file"),
        ("folder.mp4", "missing_file"),
        ("a.txt", "wrong_extension"),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_paths_lead_nowhere_but_to_videos_in_the_folder(
    tmp_path: Path, name: str, reason: str, form: str
) -> None:
    """A caption file from the network must not make us read, and publish, files of ours."""
    (tmp_path / "a.mp4").write_bytes(b"secret")
    folder = tmp_path / "set"
    (folder / "folder.mp4").mkdir(parents=True)
    (folder / "link.mp4").symlink_to(tmp_path / "a.mp4")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    if form == "jsonl":
        source = lines_file(folder, {"file": name, "text": "a"})
    else:
        source = folder / "s.parquet"
        pq.write_table(pa.table({"video": [name], "text": ["a"]}), source)
    assert found(source) == [reason]


def test_an_absolute_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"secret")
    folder = tmp_path / "set"
    folder.mkdir()
    assert found(lines_file(folder, {"file": str(tmp_path / "a.mp4"), "text": "a"})) == [
        "outside_folder"
    ]


def test_a_file_is_not_read_before_its_size_is_known(tmp_path: Path) -> None:
    """The file is a hole of half a GiB: it takes no room on the disk."""
    with (tmp_path / "a.mp4").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert found(lines_file(tmp_path, {"file": "a.mp4", "text": "a"})) == ["file_too_large"]


def test_lines_that_are_blank_are_no_clips_and_long_ones_are_skipped(tmp_path: Path) -> None:
    write_folder(tmp_path, [TEXT_ONLY])
    good = (tmp_path / "captions.jsonl").read_bytes()
    endless = b" " * (2 * MAX_TEXT_BYTES)
    text = b"\xef\xbb\xbf" + b"\n\n".join([good, endless, good, b"{" * MAX_TEXT_BYTES, good])
    (tmp_path / "captions.jsonl").write_bytes(text)
    assert found(tmp_path) == ["clip", "bad_json", "clip", "bad_json", "clip"]


def test_a_shard_says_what_is_wrong_with_each_sample(tmp_path: Path) -> None:
    members = [
        ("a.mp4", b"x"),
        ("a.txt", b"text"),
        ("a.npy", b"more"),
        ("b.mp4", b"x"),
        ("c.txt", b"text"),
        ("d.mp4", b"x"),
        ("d.txt", b"\xff"),
        ("e.mp4", b"x"),
        ("e.json", b"{"),
        ("f.jpg", b"x"),
        ("f.txt", b"text"),
        ("../g.mp4", b"x"),
        ("../g.txt", b"text"),
        ("h.mp4", b"x"),
        ("h.txt", b"x" * (MAX_TEXT_BYTES + 1)),
        ("i.mp4", b"x"),
        ("i.json", b'{"caption": "text"}'),
    ]
    (tmp_path / "s.tar").write_bytes(tar_bytes(members))
    assert found(tmp_path / "s.tar") == [
        "clip",
        "missing_caption",
        "missing_file",
        "not_utf8",
        "bad_json",
        "wrong_extension",
        "outside_folder",
        "file_too_large",
        "clip",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.tar"]


def test_a_link_in_a_shard_is_not_followed(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:") as archive:
        link = tarfile.TarInfo("a.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        text = tarfile.TarInfo("a.txt")
        text.size = 1
        archive.addfile(text, io.BytesIO(b"a"))
    (tmp_path / "s.tar").write_bytes(file.getvalue())
    assert found(tmp_path / "s.tar") == ["missing_file"]


def test_no_sample_of_a_damaged_shard_is_lost_without_a_word(tmp_path: Path) -> None:
    """tarfile takes damaged headers, and a file that just stops, for the end of the archive."""
    data = tar_bytes(members_of([TEXT_ONLY] * 3))
    shard = tmp_path / "s.tar"
    header = 4 * 512  # Of the second sample: its neighbours take a header and a block each.
    for damaged in (
        data[:header],
        data[: header + 100],
        data[:header] + bytes(512) + data[header + 512 :],
        data[:header] + b"x" * 512 + data[header + 512 :],
        data[: 12 * 512] + bytes(1024) + data,
    ):
        shard.write_bytes(damaged)
        items = found(shard)
        assert items[0] == "clip"
        assert items[-1] == "unreadable_source"
    shard.write_bytes(data)
    assert found(shard) == ["clip"] * 3


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    """A long name is read whole; in a .tar.gz a GB of it takes a MB."""
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**30
    (tmp_path / "s.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    assert found(tmp_path / "s.tar") == ["unreadable_source"]


def test_a_row_costs_only_itself(tmp_path: Path) -> None:
    bad_text = pa.array([b"a", b"\xff", None, b"d"]).cast(pa.binary()).view(pa.string())
    videos = pa.array([b"x", b"x", b"x", None], pa.binary())
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table({"video": videos, "caption": bad_text}), path)
    assert found(path) == ["clip", "not_utf8", "missing_caption", "missing_file"]


def test_a_sliced_table_keeps_videos_and_captions_together(tmp_path: Path) -> None:
    """Arrow's arrays have an offset into shared memory; to ignore it gives captions away."""
    rows = [{"bytes": bytes([n]), "path": None} for n in range(6)]
    table = pa.table({"video": rows, "text": [str(n) for n in range(6)]}).slice(2, 3)
    with pa.ipc.new_stream(tmp_path / "s.arrow", table.schema) as writer:
        writer.write_table(table)
    clips = [item for item in read_source(str(tmp_path / "s.arrow")) if isinstance(item, RawClip)]
    assert [(clip.data[0], clip.text) for clip in clips] == [(2, "2"), (3, "3"), (4, "4")]


@pytest.mark.parametrize(
    "columns",
    [
        {"video": [b"x"]},
        {"text": ["a"]},
        {"video": [1], "text": ["a"]},
        {"video": [b"x"], "text": [1]},
        {"video": [[b"x"]], "text": ["a"]},
    ],
)
def test_a_table_of_other_columns_is_one_drop(tmp_path: Path, columns: dict[str, object]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    assert found(tmp_path / "s.parquet") == ["wrong_columns"]


def test_a_row_group_is_not_read_before_its_size_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have to be held whole, and a page of zeros is small on the disk."""
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table({"video": [bytes(2**16)] * 16, "text": ["a"] * 16}), path)
    monkeypatch.setattr(tables, "MAX_GROUP_BYTES", 2**15)
    assert found(path) == ["file_too_large"]
    monkeypatch.undo()
    assert found(path) == ["clip"] * 16


def test_an_arrow_stream_cut_between_batches_is_noticed(tmp_path: Path) -> None:
    """pyarrow takes the end of the file for the end of the stream."""
    data = arrow_bytes([TEXT_ONLY] * 4)
    (tmp_path / "s.arrow").write_bytes(data[:-8])
    assert found(tmp_path / "s.arrow") == ["clip"] * 4 + ["unreadable_source"]
    (tmp_path / "s.arrow").write_bytes(data)
    assert found(tmp_path / "s.arrow") == ["clip"] * 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.tar", r"intake\.sources: no such file: .*none\.tar.*Give a path"),
        ("none", r"intake\.sources: unknown form of source: expected a folder or .*got .*none"),
        ("empty", r"intake\.sources: no captions\.jsonl in .*empty"),
        ("a.mp4", r"intake\.sources: unknown form"),
    ],
)
def test_a_source_that_is_not_there_is_an_error_of_the_user(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ValueError, match=message):
        read_source(str(tmp_path / name))
