"""WebDataset shards: tar files whose neighbouring members of one stem make up a sample."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Self

from rlvid.data.intake.drops import Drop, RefusedError
from rlvid.data.intake.records import (
    MAX_FILE_BYTES,
    MAX_TEXT_BYTES,
    VIDEO_SUFFIXES,
    RawClip,
    caption_of,
    check_bytes,
    check_suffix,
    decode_text,
    load_object,
)

TAR_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, IndexError, zlib.error)
"""What the standard library raises at a damaged archive, numbers in its headers included."""
LONG_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
"""Read whole into memory by tarfile, whatever their size."""
READ_BYTES = 2**16
END_MARK = bytes(tarfile.BLOCKSIZE)
TEXT_SUFFIXES = (".txt", ".json")


class _Member(tarfile.TarInfo):
    """A header; a damaged one is an error.

    tarfile itself takes it, or a file that ends without the end mark, for the end of the archive,
    and the samples behind it would be lost without a word.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if bytes(buf) == END_MARK:
            return super().frombuf(buf, encoding, errors)
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        is_bloated = header.type in LONG_HEADERS and header.size > MAX_TEXT_BYTES
        if header.size < 0 or is_bloated:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


@dataclass(slots=True)
class _Sample:
    """Members of one stem, read so far."""

    stem: str
    video: bytes | None = None
    texts: dict[str, bytes] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    """Members of other suffixes; they hurt nobody unless one stands where a video should."""
    refused: RefusedError | None = None
    """The first thing that was wrong with it."""

    def finish(self, source: str) -> RawClip | Drop:
        name = f"{source}:{self.stem}"
        try:
            if self.refused is not None:
                raise self.refused
            if self.video is None and self.others:
                check_suffix(self.others[0])
            if self.video is None:
                raise RefusedError("missing_file", f"no video beside {sorted(self.texts)}")
            return RawClip(name, self.video, self._caption())
        except RefusedError as refused:
            return Drop(name, refused.reason, refused.detail)

    def _caption(self) -> str:
        if ".txt" in self.texts:
            return decode_text(self.texts[".txt"])
        if ".json" not in self.texts:
            raise RefusedError("missing_caption", "no .txt or .json next to the video, of its stem")
        return caption_of(load_object(self.texts[".json"]))


def read_shard(path: Path) -> Iterator[RawClip | Drop]:
    """Yield the samples of a .tar, .tar.gz or .tgz, one in memory at a time, none on disk.

    Members of a sample must follow each other, as WebDataset writes them. A .txt is preferred to a
    .json. A damaged archive ends in one Drop for all that could not be read.
    """
    source = str(path)
    sample: _Sample | None = None
    try:
        with _open(path) as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # Else it keeps every header.
                if member.isdir():
                    continue
                stem, suffix = _split(member.name)
                if sample is not None and sample.stem != stem:
                    yield sample.finish(source)
                    sample = None
                sample = sample or _Sample(stem)
                _take(archive, member, suffix, sample)
            _check_end(archive)
    except TAR_ERRORS as error:
        if sample is not None:
            if sample.video is None or not sample.texts:
                sample.refused = RefusedError("unreadable_source", f"damaged archive: {error}")
            yield sample.finish(source)
            sample = None
        yield Drop(f"{source}:rest", "unreadable_source", f"samples from here on: {error}")
    if sample is not None:
        yield sample.finish(source)


def _open(path: Path) -> tarfile.TarFile:
    """Open as a stream: read once from front to back, and nothing written."""
    if path.suffix == ".tar":
        return tarfile.open(path, mode="r|", tarinfo=_Member, errors="replace")
    return tarfile.open(path, mode="r|gz", tarinfo=_Member, errors="replace")


def _check_end(archive: tarfile.TarFile) -> None:
    """Refuse a zeroed header, or a second archive, which looks like the end of this one."""
    assert archive.fileobj is not None, "an open archive has a file"
    while rest := archive.fileobj.read(READ_BYTES):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("data behind the end mark")


def _split(name: str) -> tuple[str, str]:
    """Return (stem, suffix): WebDataset's stem ends at the first dot of the file's name."""
    path = PurePosixPath(name)
    head, dot, tail = path.name.partition(".")
    return str(path.with_name(head)) if head else name, (dot + tail).lower()


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, sample: _Sample) -> None:
    try:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise RefusedError("outside_folder", f"expected a plain name, got {member.name[:80]!r}")
        if not member.isreg():
            raise RefusedError("missing_file", f"{member.name[:80]!r} is a link or a device")
        if suffix in TEXT_SUFFIXES:
            sample.texts[suffix] = _read(archive, member, MAX_TEXT_BYTES)
        elif suffix in VIDEO_SUFFIXES:
            sample.video = _read(archive, member, MAX_FILE_BYTES)
        else:
            sample.others.append(member.name)
    except RefusedError as refused:
        sample.refused = sample.refused or refused


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
    check_bytes(member.size, limit)
    file = archive.extractfile(member)
    assert file is not None, "a regular member has content"
    return file.read()
