"""Data set files of Hugging Face `datasets`: Parquet, and Arrow streams, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rlvid.data.intake.drops import Drop, RefusedError
from rlvid.data.intake.records import (
    MAX_FILE_BYTES,
    MAX_TEXT_BYTES,
    TEXT_KEYS,
    VIDEO_KEYS,
    RawClip,
    check_bytes,
    decode_text,
    read_inside,
)

TABLE_ERRORS = (pa.ArrowException, OSError, ValueError)
"""What pyarrow raises at damaged files."""
READ_BYTES = 2**20
"""Read at a time of a Parquet column, instead of a whole row group."""
MAX_GROUP_BYTES = 2**31
"""Of a row group of a Parquet file, uncompressed."""
ARROW_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""A stream cut off between two batches lacks it; pyarrow takes such a one for complete."""


def read_table(path: Path) -> Iterator[RawClip | Drop]:
    """Yield the rows of a .parquet or .arrow file.

    The column `video` holds bytes, a struct of `bytes` and `path`, or paths in the file's folder;
    `text` or `caption` the captions. An Arrow stream is mapped. Of Parquet a page is in memory,
    which for videos may be a whole row group, and twice: write groups of few rows. A damaged file
    ends in one Drop for all that could not be read.
    """
    source = str(path)
    row = 0
    try:
        for videos, texts in _parquet(path) if path.suffix == ".parquet" else _arrow(path):
            columns = _Columns(videos, texts, path.parent)
            for index in range(len(texts)):
                yield columns.clip(index, f"{source}:{row}")
                row += 1
    except RefusedError as refused:
        yield Drop(f"{source}:rest", refused.reason, refused.detail)
    except TABLE_ERRORS as error:
        yield Drop(f"{source}:rest", "unreadable_source", f"rows from {row} on: {error}")


def _parquet(path: Path) -> Iterator[tuple[pa.Array, pa.Array]]:
    with pq.ParquetFile(
        path, buffer_size=READ_BYTES, pre_buffer=False, page_checksum_verification=True
    ) as file:
        videos, texts = _names(file.schema_arrow)
        _check_groups(file.metadata)
        missing = file.metadata.num_rows
        batches = file.iter_batches(batch_size=1, columns=[videos, texts], use_threads=False)
        for batch in batches:
            missing -= batch.num_rows
            yield batch.column(videos), batch.column(texts)
        if missing:
            raise pa.ArrowInvalid(f"{missing} rows fewer than the file says")


def _check_groups(metadata: pq.FileMetaData) -> None:
    sizes = [metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)]
    if max(sizes, default=0) > MAX_GROUP_BYTES:
        raise RefusedError(
            "file_too_large",
            f"expected row groups of at most {MAX_GROUP_BYTES} bytes, got one of {max(sizes)}",
        )


def _arrow(path: Path) -> Iterator[tuple[pa.Array, pa.Array]]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        videos, texts = _names(reader.schema)
        for batch in reader:
            yield batch.column(videos), batch.column(texts)
    with path.open("rb") as end:
        end.seek(-len(ARROW_END), 2)
        if end.read() != ARROW_END:
            raise pa.ArrowInvalid("no end mark: the stream was cut off")


def _names(schema: pa.Schema) -> tuple[str, str]:
    """Return the columns of the videos and the captions."""
    names = []
    for keys in (VIDEO_KEYS, TEXT_KEYS):
        found = [key for key in keys if schema.get_field_index(key) >= 0]
        if not found:
            raise RefusedError("wrong_columns", f"expected one of {keys}, got {schema.names[:20]}")
        names.append(found[0])
    return names[0], names[1]


class _Columns:
    """The videos and captions of one batch, checked before any row is touched."""

    def __init__(self, videos: pa.Array, texts: pa.Array, folder: Path) -> None:
        self._texts = _as_bytes(texts)
        self._folder = folder
        self._parts: dict[str, pa.Array] = {}
        if pa.types.is_struct(videos.type):
            children = zip(videos.type, videos.flatten(), strict=True)
            self._parts = {
                field.name: _as_bytes(child)
                for field, child in children
                if field.name in ("bytes", "path")
            }
        else:
            self._parts["path" if _is_text(videos.type) else "bytes"] = _as_bytes(videos)

    def clip(self, index: int, name: str) -> RawClip | Drop:
        """Return one row."""
        try:
            text = _bytes_at(self._texts, index, MAX_TEXT_BYTES)
            if text is None:
                raise RefusedError("missing_caption", "expected text, got null")
            return RawClip(name, self._video(index), decode_text(text))
        except RefusedError as refused:
            return Drop(name, refused.reason, refused.detail)

    def _video(self, index: int) -> bytes:
        data = _bytes_at(self._parts.get("bytes"), index, MAX_FILE_BYTES)
        if data is not None:
            return data
        path = _bytes_at(self._parts.get("path"), index, MAX_TEXT_BYTES)
        if path is None:
            raise RefusedError("missing_file", "expected the bytes of a video or a path, got null")
        return read_inside(self._folder, decode_text(path))


def _bytes_at(column: pa.Array | None, index: int, limit: int) -> bytes | None:
    if column is None or not column[index].is_valid:
        return None
    buffer = column[index].as_buffer()
    check_bytes(buffer.size, limit)
    return bytes(buffer.to_pybytes())


def _as_bytes(column: pa.Array) -> pa.Array:
    """Return the column as checked binary values.

    Text becomes the bytes it is made of, since one row that is not UTF-8 must cost only itself.
    """
    if pa.types.is_dictionary(column.type):
        column.validate(full=True)
        column = column.dictionary_decode()
    if pa.types.is_null(column.type):  # A column of nothing but None.
        column = column.cast(pa.binary())
    elif pa.types.is_string(column.type):
        column = column.view(pa.binary())
    elif pa.types.is_large_string(column.type):
        column = column.view(pa.large_binary())
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise RefusedError("wrong_columns", f"expected text, paths or bytes, got {column.type}")
    column.validate(full=True)
    return column


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
