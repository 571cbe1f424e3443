"""Real clips and data sets of every kind, for the tests and the benchmark of the intake."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rlvid.config.intake import IntakeConfig
from rlvid.data.clips import ClipShape
from rlvid.data.intake import Drop, Intake, RealClip, TextArea
from rlvid.data.tiny_world import all_facts, caption, render_clip
from rlvid.data.video_files import write_mp4

SHAPE = ClipShape(num_frames=9, height=32, width=32, fps=8)
SETTINGS: Mapping[str, Any] = {
    "min_seconds": 1.0,
    "max_seconds": 4.0,
    "min_height": 32,
    "min_width": 32,
    "duplicate_distance": 1.0,
}
"""What tiny clips need other than the defaults; the posts behind all of them are the same."""

Pair = tuple[bytes, str]


def section(*sources: Path | str, **changes: Any) -> IntakeConfig:
    names = tuple(str(source) for source in sources)
    return IntakeConfig.model_validate({**SETTINGS, "sources": names, **changes})


def outcomes_of(
    *sources: Path | str,
    shape: ClipShape = SHAPE,
    text_area: TextArea | None = None,
    **changes: Any,
) -> list[RealClip | Drop]:
    """Take in the sources, and check the count of what became of them."""
    intake = Intake(section(*sources, **changes), shape, text_area)
    outcomes = list(intake.outcomes())
    assert intake.counts.is_complete
    assert intake.counts.seen == len(outcomes)
    return outcomes


def reasons(outcomes: Sequence[RealClip | Drop]) -> list[str]:
    return [item.reason if isinstance(item, Drop) else "kept" for item in outcomes]


def rendered(
    index: int, *, num_frames: int = 51, fps: float = 24, height: int = 32, width: int = 32
) -> tuple[Tensor, str]:
    """Return a clip of the tiny world, [T, 3, H, W], and its caption."""
    facts = all_facts()[(index * 37) % len(all_facts())]
    video = render_clip(facts, index, num_frames=num_frames, fps=fps, height=height, width=width)
    return video, caption(facts)


def mp4(video: Tensor, fps: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        write_mp4(path, video, fps)
        return path.read_bytes()


@lru_cache(maxsize=64)
def tiny_pair(index: int) -> Pair:
    """Return a clip of 2.1 s at 24 fps as an MP4, and its caption."""
    video, text = rendered(index)
    return mp4(video, 24), text


def encoded(video: Tensor, fps: int, *, container: str, codec: str, pix_fmt: str) -> bytes:
    """Return the video in any container, the same bytes at every call.

    Without macroblock trees, with which x264, as in `write_mp4`, now and then decides otherwise;
    and bit-exact, since Matroska has random numbers in its header otherwise.
    """
    frames = video.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    options = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if container == "mp4" else {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        with av.open(str(path), "w", format=container, container_options=options) as output:
            stream = output.add_stream(codec, rate=fps)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
            stream.options = {"x264-params": "mbtree=0"} if codec == "libx264" else {}
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                output.mux(stream.encode(picture))
            output.mux(stream.encode())
        return path.read_bytes()


def write_folder(folder: Path, pairs: Sequence[Pair], *, list_name: str = "captions.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    lines = []
    for number, (data, text) in enumerate(pairs):
        (folder / f"{number}.mp4").write_bytes(data)
        lines.append(json.dumps({"file": f"{number}.mp4", "text": text}))
    (folder / list_name).write_text("\n".join(lines), encoding="utf-8")
    return folder


def tar_bytes(members: Sequence[tuple[str, bytes]], *, gz: bool = False) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:") as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return gzip.compress(file.getvalue(), mtime=0) if gz else file.getvalue()


def members_of(pairs: Sequence[Pair], *, as_json: bool = False) -> list[tuple[str, bytes]]:
    """Return the members of a WebDataset shard."""
    members = []
    for number, (data, text) in enumerate(pairs):
        members.append((f"set/{number:04}.mp4", data))
        if as_json:
            members.append((f"set/{number:04}.json", json.dumps({"caption": text}).encode()))
        else:
            members.append((f"set/{number:04}.txt", text.encode()))
    return members


def table_of(pairs: Sequence[Pair], form: str = "struct") -> pa.Table:
    """Return a table as `datasets` writes videos: struct, plain bytes, or paths."""
    videos: list[Any] = [data for data, _ in pairs]
    if form == "struct":
        videos = [{"bytes": data, "path": None} for data in videos]
    if form == "paths":
        videos = [f"{number}.mp4" for number in range(len(pairs))]
    return pa.table({"text": [text for _, text in pairs], "video": videos})


def parquet_bytes(pairs: Sequence[Pair], form: str = "struct") -> bytes:
    file = io.BytesIO()
    pq.write_table(table_of(pairs, form), file)
    return file.getvalue()


def arrow_bytes(pairs: Sequence[Pair], form: str = "bytes") -> bytes:
    table = table_of(pairs, form)
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return file.getvalue()


def _written(name: str, content: Callable[[Sequence[Pair]], bytes]) -> Callable[..., Path]:
    def write(folder: Path, pairs: Sequence[Pair]) -> Path:
        write_folder(folder, pairs)  # For the forms that hold paths.
        (folder / name).write_bytes(content(pairs))
        return folder / name

    return write


WRITERS: Mapping[str, Callable[[Path, Sequence[Pair]], Path]] = {
    "folder": write_folder,
    "jsonl": lambda folder, pairs: write_folder(folder, pairs, list_name="s.jsonl") / "s.jsonl",
    "tar": _written("s.tar", lambda pairs: tar_bytes(members_of(pairs))),
    "tar, captions in JSON": _written(
        "s.tar", lambda pairs: tar_bytes(members_of(pairs, as_json=True))
    ),
    "tar.gz": _written("s.tar.gz", lambda pairs: tar_bytes(members_of(pairs), gz=True)),
    "tgz": _written("s.tgz", lambda pairs: tar_bytes(members_of(pairs), gz=True)),
    "parquet, structs": _written("s.parquet", parquet_bytes),
    "parquet, bytes": _written("s.parquet", lambda pairs: parquet_bytes(pairs, "bytes")),
    "parquet, paths": _written("s.parquet", lambda pairs: parquet_bytes(pairs, "paths")),
    "arrow, structs": _written("s.arrow", lambda pairs: arrow_bytes(pairs, "struct")),
    "arrow, bytes": _written("s.arrow", arrow_bytes),
    "arrow, paths": _written("s.arrow", lambda pairs: arrow_bytes(pairs, "paths")),
}
"""Every form a source may have."""
