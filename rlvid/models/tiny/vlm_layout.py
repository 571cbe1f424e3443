"""How a clip becomes the images of a vision-language judge: which frames, and how laid out.

A judge is taught with one layout and must be asked with the same; `judge.json` beside its weights
says which. Needs numpy only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

LAYOUT_FILE = "judge.json"
Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeLayout:
    """The contents of `judge.json`."""

    frames: tuple[int, ...]
    """Indices of the frames shown, of a clip of `num_frames`."""
    num_frames: int = 17
    """A clip of another length shows the frames at the same share of its duration."""
    layout: Literal["images", "sheet"] = "sheet"
    """One image for each frame, or one contact sheet of all, row by row."""
    columns: int = 4
    """Of the sheet."""
    timeline: bool = True
    """Draw over the bottom of each frame a bar that grows from the first shown frame to the last:
    rotary positions say which frame is beside which, but not which is the first."""
    size: tuple[int, int] = (32, 32)
    """(height, width) that each frame is resized to first."""
    dtype: str = "float32"
    """To serve it in; vLLM's "auto" would round to bfloat16."""
    yes: str = "Yes"
    no: str = "No"
    templates_version: int = 0
    """`data.tiny_world.questions.TEMPLATES_VERSION` it was taught with."""
    measured: dict[str, Any] = field(default_factory=dict)
    """AUC and accuracy on held-out clips, by kind of question."""

    def indices(self, num_frames: int) -> list[int]:
        """Return the frames to show of a clip of that many frames."""
        scale = (num_frames - 1) / (self.num_frames - 1)
        return [round(index * scale) for index in self.frames]

    def images(self, clip: Frames) -> list[Frames]:
        """Return the images of a clip, uint8 [T, H, W, 3], already resized to `size`."""
        if clip.shape[1:] != (*self.size, 3):
            raise ValueError(
                f"judge layout: frames of the wrong size: expected [T, {self.size[0]}, "
                f"{self.size[1]}, 3], got {list(clip.shape)}. Resize the frames first."
            )
        shown = clip[self.indices(len(clip))]
        if self.timeline:
            bars = timeline(len(shown), *self.size)
            shown = shown.copy()
            shown[:, -bars.shape[1] :] = bars[..., None]
        if self.layout == "images":
            return list(shown)
        return [contact_sheet(shown, self.columns)]

    def save(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=1)
        (folder / LAYOUT_FILE).write_text(text + "\n")

    @classmethod
    def load(cls, folder: Path) -> JudgeLayout:
        file = folder / LAYOUT_FILE
        if not file.is_file():
            raise ValueError(
                f"judge layout: no file {file}: expected the {LAYOUT_FILE} that "
                "rlvid.reward_models.tiny_judge.training writes beside the weights."
            )
        values = json.loads(file.read_text())
        values["frames"], values["size"] = tuple(values["frames"]), tuple(values["size"])
        return cls(**values)


TINY_LAYOUT = JudgeLayout(frames=tuple(range(16)))
"""Of the shipped judge: the first 16 of 17 frames as a sheet of 4 x 4, [128, 128, 3]."""


def timeline(count: int, height: int, width: int) -> Frames:
    """Return the bars [count, height // 16, width] of the frames: white for the time gone by."""
    gone = np.arange(width)[None] < np.round(np.arange(1, count + 1) * width / count)[:, None]
    rows = max(1, height // 16)
    return np.repeat(np.where(gone, 255, 0).astype(np.uint8)[:, None], rows, axis=1)


def contact_sheet(frames: Frames, columns: int) -> Frames:
    """Return [N, H, W, 3] frames as one image, row by row; N must fill the rows."""
    count, height, width, channels = frames.shape
    if count % columns:
        raise ValueError(
            f"contact sheet: {count} frames do not fill rows of {columns}: expected a multiple. "
            "Choose another number of frames or columns."
        )
    rows = count // columns
    grid = frames.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(grid.reshape(rows * height, columns * width, channels))
