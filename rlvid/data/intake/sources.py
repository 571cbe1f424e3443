"""Real clips with captions as a stream, from any of the forms such sets come in.

One clip is in memory at a time, sizes are looked at before anything is read, and nothing that
follows from what is in a source raises: it is a `Drop`, and reading goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlvid.data.clips import CAPTIONS_FILE
from rlvid.data.intake.drops import Drop, RefusedError
from rlvid.data.intake.records import (
    MAX_TEXT_BYTES,
    RawClip,
    caption_of,
    lines_of,
    load_object,
    path_of,
    read_inside,
)
from rlvid.data.intake.shards import read_shard
from rlvid.data.intake.tables import read_table

__all__ = ["RawClip", "check_source", "read_source"]

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
TABLE_SUFFIXES = (".parquet", ".arrow")


def read_source(source: str) -> Iterator[RawClip | Drop]:
    """Yield what the source holds, in its order.

    A folder is read through its captions.jsonl, of lines {"file": "a.mp4", "text": "..."}; any
    other .jsonl the same way, with paths relative to it. Paths lead nowhere outside that folder.

    Raises:
        ValueError: no such source, or none of a known form; see `check_source`.
    """
    path = check_source(source)
    if path.name.endswith(SHARD_SUFFIXES):
        return read_shard(path)
    if path.suffix in TABLE_SUFFIXES:
        return read_table(path)
    return _read_lines(path)


def check_source(source: str) -> Path:
    """Return the file that a source is read from, without opening it."""
    path = Path(source).expanduser()
    if path.is_dir():
        path /= CAPTIONS_FILE
        if not path.is_file():
            raise ValueError(
                f"intake.sources: no {CAPTIONS_FILE} in {source!r}: expected a folder with one, of "
                'lines {"file": "a.mp4", "text": "..."}. Write it, or name shards and data set '
                "files one by one."
            )
        return path
    known = (*SHARD_SUFFIXES, *TABLE_SUFFIXES, ".jsonl")
    if not path.name.endswith(known):
        raise ValueError(
            f"intake.sources: unknown form of source: expected a folder or a file of "
            f"{', '.join(known)}, got {source!r}. Rename or convert it."
        )
    if not path.is_file():
        raise ValueError(
            f"intake.sources: no such file: {source!r}. Give a path that exists; relative ones "
            "start at the working folder, and patterns are not expanded."
        )
    return path


def _read_lines(path: Path) -> Iterator[RawClip | Drop]:
    for number, line in lines_of(path):
        name = f"{path}:{number}"
        try:
            if line is None:
                raise RefusedError("bad_json", f"a line of more than {MAX_TEXT_BYTES} bytes")
            item = load_object(line)
            text = caption_of(item)
            clip = RawClip(name, read_inside(path.parent, path_of(item)), text)
        except RefusedError as refused:
            yield Drop(name, refused.reason, refused.detail)
        else:
            yield clip
