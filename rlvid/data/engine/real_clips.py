"""Real clips of a data set as clips: read from their files, or drawn by the tiny world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from rlvid.data.clips import ClipShape
from rlvid.data.engine.records import ClipRecord
from rlvid.data.tiny_world import render_clip
from rlvid.data.video_files import read_mp4


class ManifestClips:
    """A `ClipSet` of rows of a manifest."""

    def __init__(self, folder: Path, records: Sequence[ClipRecord], shape: ClipShape) -> None:
        self._folder = folder
        self._records = records
        self._shape = shape

    def __len__(self) -> int:
        return len(self._records)

    def clip(self, index: int) -> tuple[Tensor, str]:
        """Return [T, 3, H, W] float32 in [0, 1] and its caption."""
        record, shape = self._records[index], self._shape
        if record.file:
            video, _ = read_mp4(self._folder / record.file)
            return video[: shape.num_frames], record.text
        video = render_clip(
            record.facts,
            record.seed,
            num_frames=shape.num_frames,
            height=shape.height,
            width=shape.width,
            fps=shape.fps,
        )
        return video, record.text
