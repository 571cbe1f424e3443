"""What a source holds before it is judged: names, bytes and captions, still undecoded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rlvid.data.intake.drops import DropReason, RefusedError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
VIDEO_KEYS = ("video", "file", "file_name")
"""Under which data sets put a video or its path; the first that is there is taken."""
TEXT_KEYS = ("text", "caption")
MAX_FILE_BYTES = 2**29
"""Of one video file; 16 s at 250 Mbit/s."""
MAX_TEXT_BYTES = 2**20
"""Of one caption file, or line of a .jsonl."""


@dataclass(frozen=True, slots=True)
class RawClip:
    """One video with its caption, as a source holds it."""

    name: str
    """`source:place`; the place is a line from 1, a sample's path in its shard, or a row from 0."""
    data: bytes
    text: str


def caption_of(item: dict[str, Any]) -> str:
    """Return the caption of a JSON record."""
    return _text_under(TEXT_KEYS, item, "missing_caption")


def path_of(item: dict[str, Any]) -> str:
    """Return the path of the video of a JSON record."""
    return _text_under(VIDEO_KEYS, item, "missing_file")


def _text_under(keys: tuple[str, ...], item: dict[str, Any], reason: DropReason) -> str:
    found = [item[key] for key in keys if item.get(key) is not None]
    if not found:
        raise RefusedError(reason, f"expected one of {keys}, got keys {sorted(item)[:8]}")
    if not isinstance(found[0], str):
        raise RefusedError("bad_json", f"expected text for one of {keys}, got {found[0]!r:.80}")
    return found[0]


def decode_text(data: bytes) -> str:
    """Return the bytes as UTF-8 text, without the mark some editors put in front."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedError(
            "not_utf8", f"byte {error.start} of {len(data)}: {error.reason}"
        ) from error


def load_object(data: bytes) -> dict[str, Any]:
    """Return a JSON object."""
    text = decode_text(data)
    try:
        item = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError("bad_json", f"not JSON: {error}") from error
    if not isinstance(item, dict):
        raise RefusedError("bad_json", f"expected an object, got {type(item).__name__}")
    return item


def check_suffix(name: str) -> None:
    suffix = Path(name).suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        raise RefusedError("wrong_extension", f"expected one of {VIDEO_SUFFIXES}, got {suffix!r}")


def check_bytes(num_bytes: int, limit: int) -> None:
    if num_bytes > limit:
        raise RefusedError("file_too_large", f"expected at most {limit} bytes, got {num_bytes}")


def read_inside(folder: Path, name: str) -> bytes:
    """Return a video file that lies in the folder once links are followed."""
    check_suffix(name)
    try:
        path = (folder / name).resolve()
        is_inside = path.is_relative_to(folder.resolve())
        is_file = is_inside and path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # A NUL, a loop of links, too long a name.
        raise RefusedError("missing_file", f"no file can have the name {name[:80]!r}") from error
    if not is_inside:
        raise RefusedError("outside_folder", f"expected a path in the folder, got {name[:80]!r}")
    if not is_file:
        raise RefusedError("missing_file", f"no such file in the folder: {name[:80]!r}")
    try:
        with path.open("rb") as file:
            return _read_at_most(file, MAX_FILE_BYTES)
    except OSError as error:
        raise RefusedError("missing_file", f"cannot be read: {error.strerror}") from error


def _read_at_most(file: BinaryIO, limit: int) -> bytes:
    size = file.seek(0, 2)
    check_bytes(size, limit)
    file.seek(0)
    return file.read(limit)


def lines_of(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield (line number from 1, line) of lines not blank; None for one over `MAX_TEXT_BYTES`."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_TEXT_BYTES):
            number += 1
            if len(line) < MAX_TEXT_BYTES or line.endswith(b"\n"):
                if line.strip():
                    yield number, line
                continue
            while (rest := file.readline(MAX_TEXT_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
