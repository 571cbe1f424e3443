"""Where a run's numbers, alarms, images and clips go: two JSON-lines files and TensorBoard.

metrics.jsonl and alarms.jsonl are the truth (the report reads them); TensorBoard is a view. One run
folder has one of each; every row names its phase, and a resumed phase drops what it is about to do
again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from rlvid.observability.clips import encode_animated_png, to_pixels
from rlvid.observability.metrics import check_names

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import FileWriter


class Recorder:
    """Writes the metrics of one phase; a context manager, or call `close`."""

    def __init__(self, folder: Path, phase: str = "run") -> None:
        """Args:
        folder: the run folder; `metrics.jsonl` and `tensorboard/` are made in it at first use.
        phase: written into every row, and the name of the TensorBoard run.
        """
        self.path = folder / "metrics.jsonl"
        self.alarms_path = folder / "alarms.jsonl"
        self.phase = phase
        self._tensorboard_folder = folder / "tensorboard" / phase
        self._writer: FileWriter | None = None

    def resume_after(self, step: int | None) -> None:
        """Keep what this phase wrote up to and with `step`, forget the rest; None forgets all.

        Rows are labelled by the steps done, as checkpoints are, so a checkpoint's own row stays.
        The file is replaced in one rename, so a crash leaves the old rows or the new ones. A last
        line cut short by a crash is dropped too.
        """
        first_forgotten = 0 if step is None else step + 1
        had_rows = self.path.exists()
        for path in (self.path, self.alarms_path):
            if path.exists():
                self._forget(path, first_forgotten)
        if had_rows:
            self._purge_tensorboard(first_forgotten)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row.

        Raises:
            ValueError: a name is not in the table of metrics.
        """
        check_names(metrics)
        from tensorboard.compat.proto.summary_pb2 import Summary

        row = {"phase": self.phase, "step": step, "time_s": round(time.time(), 3)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "metrics": dict(metrics)}) + "\n")
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._tensorboard().add_summary(Summary(value=values), step)
        self._tensorboard().flush()

    def write_alarm(self, step: int, kind: str, subject: str, message: str) -> None:
        """Append a row to alarms.jsonl and show it among TensorBoard's texts."""
        row = {"phase": self.phase, "step": step, "time_s": round(time.time(), 3)}
        row |= {"kind": kind, "subject": subject, "message": message}
        self.alarms_path.parent.mkdir(parents=True, exist_ok=True)
        with self.alarms_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.write_text(f"alarms/{kind}", step, message)

    def write_text(self, name: str, step: int, text: str) -> None:
        """Show a text, Markdown tables too, in TensorBoard."""
        from torch.utils.tensorboard.summary import text as text_summary

        self._tensorboard().add_summary(text_summary(name, text), step)
        self._tensorboard().flush()

    def write_image(self, name: str, step: int, image: Tensor) -> None:
        """Show an image [3, H, W] in [0, 1] in TensorBoard."""
        import io

        from PIL import Image

        buffer = io.BytesIO()
        pixels = to_pixels(image[None], min_side=128)[0]
        Image.fromarray(pixels).save(buffer, format="PNG")
        self._write_picture(name, step, buffer.getvalue(), pixels.shape[0], pixels.shape[1])

    def write_video(self, name: str, step: int, clip: Tensor, fps: int) -> None:
        """Show a clip [T, 3, H, W] in [0, 1] in TensorBoard, as a lossless animated PNG.

        TensorBoard has no video of its own; it shows an animated image, which plays in the browser.
        """
        height, width = to_pixels(clip[:1], min_side=128).shape[1:3]
        self._write_picture(name, step, encode_animated_png(clip, fps), height, width)

    def close(self) -> None:
        """Flush and close TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _forget(self, path: Path, first_forgotten: int) -> None:
        """Drop this phase's rows from that step on."""
        rows = read_rows(path)
        kept = [r for r in rows if r["phase"] != self.phase or r["step"] < first_forgotten]
        part = path.with_suffix(".jsonl.part")
        part.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(part, path)

    def _write_picture(self, name: str, step: int, png: bytes, height: int, width: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        value = Summary.Value(tag=name, image=picture)
        self._tensorboard().add_summary(Summary(value=[value]), step)

    def _purge_tensorboard(self, step: int) -> None:
        """Tell TensorBoard that a restart happened: it then hides earlier values from `step` on."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        restarted = SessionLog(status=SessionLog.START)
        self._tensorboard().add_event(Event(session_log=restarted), step)

    def _tensorboard(self) -> FileWriter:
        if self._writer is None:
            from torch.utils.tensorboard.writer import FileWriter

            self._tensorboard_folder.mkdir(parents=True, exist_ok=True)
            self._writer = FileWriter(str(self._tensorboard_folder))
        return self._writer


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file; a last line that a crash cut short is left out.

    Raises:
        ValueError: a line other than the last is not a row.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}: line {number} is not JSON ({error}); restore it") from error
    return rows
