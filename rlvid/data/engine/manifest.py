"""The manifest of a data set: where every clip came from and how it scored, in Parquet.

    <folder>/manifest/part-00000.parquet    rows in the order of the plan, a bounded number a file
    <folder>/dataset.json                   counts, the digest of all rows, and what made them

Its digest is taken over the rows and not over the files: another version of the Parquet library, or
a run that was killed and resumed, gives the same one. Rows are read in batches; nothing here holds
the set in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rlvid import durable
from rlvid.data.engine.records import ClipKind, ClipRecord

FOLDER = "manifest"
SUMMARY = "dataset.json"
BATCH_ROWS = 1024


def write_manifest(
    folder: Path,
    records: Iterable[ClipRecord],
    *,
    rows_per_part: int,
    made_by: Mapping[str, Any],
) -> str:
    """Write the rows and return their digest.

    The summary is written last and makes the data set whole: a folder without it is unfinished.

    Raises:
        DiskFullError: there was no room.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = folder / FOLDER
    durable.make_folder(target)
    hasher = hashlib.blake2b(digest_size=16)
    counts: dict[str, int] = {}
    parts = 0
    rows = iter(records)
    while part := list(islice(rows, rows_per_part)):
        for record in part:
            hasher.update(json.dumps(record.to_json(), sort_keys=True).encode() + b"\n")
            counts[record.kind] = counts.get(record.kind, 0) + 1
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([_row(r) for r in part], schema=_schema()), sink)
        durable.write_file(target / f"part-{parts:05d}.parquet", [sink.getvalue()])
        parts += 1
    for stale in target.glob("part-*.parquet"):
        if int(stale.stem.removeprefix("part-")) >= parts:
            stale.unlink()
    digest = hasher.hexdigest()
    summary = {"digest": digest, "num_parts": parts, "num_clips": counts, **made_by}
    durable.write_file(folder / SUMMARY, [(json.dumps(summary, indent=1) + "\n").encode()])
    return digest


def read_summary(folder: Path) -> dict[str, Any]:
    """Return dataset.json.

    Raises:
        ValueError: the folder holds no finished data set.
    """
    path = folder / SUMMARY
    if not path.is_file():
        raise ValueError(
            f"data set {str(folder)!r}: no {SUMMARY} in it: expected what phase data_engine "
            "writes when it ends. Finish that run with --resume, or give another folder."
        )
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def read_manifest(folder: Path, *, kinds: Iterable[ClipKind] | None = None) -> Iterator[ClipRecord]:
    """Yield the rows of a data set in the order in which they were planned.

    Raises:
        ValueError: not a finished data set, or files of it are missing.
    """
    import pyarrow.parquet as pq

    wanted = None if kinds is None else set(kinds)
    for number in range(int(read_summary(folder)["num_parts"])):
        path = folder / FOLDER / f"part-{number:05d}.parquet"
        if not path.is_file():
            raise ValueError(f"data set {str(folder)!r}: {path.name} is missing; copy it whole.")
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for row in batch.to_pylist():
                    if wanted is None or row["kind"] in wanted:
                        yield _record(row)


def _schema() -> Any:
    import pyarrow as pa

    text = pa.string()
    return pa.schema(
        [
            ("clip_id", text),
            ("kind", text),
            ("text", text),
            ("prompt_id", text),
            ("dimension", text),
            ("facts", pa.map_(text, text)),
            ("origin", text),
            ("seed", pa.int64()),
            ("file", text),
            ("row", pa.int32()),
            ("content", text),
            ("scores", pa.map_(text, pa.float64())),
            ("reward", pa.float64()),
        ]
    )


def _row(record: ClipRecord) -> dict[str, Any]:
    tree = record.to_json()
    return {**tree, "facts": list(tree["facts"].items()), "scores": list(tree["scores"].items())}


def _record(row: Mapping[str, Any]) -> ClipRecord:
    return ClipRecord(**{**row, "facts": dict(row["facts"]), "scores": dict(row["scores"])})
