"""Clips with captions for supervised training: rendered, or from a folder of videos."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from rlvid.config import ModelConfig
from rlvid.data.prompts import seeded_order
from rlvid.data.tiny_world import all_facts, caption, render_clip, split_of
from rlvid.data.video_files import VideoInfo, probe_mp4, read_mp4
from rlvid.seeds import derive_seed

CAPTIONS_FILE = "captions.jsonl"


class ClipSet(Protocol):
    """A fixed number of clips, each the same at every call."""

    def __len__(self) -> int: ...

    def clip(self, index: int) -> tuple[Tensor, str]:
        """Return [T, 3, H, W] float32 in [0, 1] and its caption."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipShape:
    """The shape every clip of a set has."""

    num_frames: int = 17
    height: int = 32
    width: int = 32
    fps: float = 8


def clip_shape(model: ModelConfig) -> ClipShape:
    """Return the shape of the clips that a recipe's model makes."""
    return ClipShape(
        num_frames=model.num_frames, height=model.height, width=model.width, fps=model.fps
    )


def open_clips(
    source: str, shape: ClipShape, *, num_clips: int, clip_seed: int, where: str = "sft.clips"
) -> ClipSet:
    """Return the clips of `sft.clips` and the like: "tiny_world", or a folder.

    `num_clips` and `clip_seed` are for the tiny world; a folder gives what it holds.

    Args:
        where: the recipe path that names them, for errors.
    """
    if source == "tiny_world":
        return TinyWorldClips(shape, num_clips=num_clips, clip_seed=clip_seed)
    return open_folder_clips(Path(source).expanduser(), shape, where=where)


class TinyWorldClips:
    """Clips of the tiny world's training split, rendered when asked for; never held-out facts.

    Each pass over the facts has an order of its own, so that the clips of any stretch of indices
    are varied and each combination is shown equally often, to within one clip.
    """

    def __init__(self, shape: ClipShape, *, num_clips: int, clip_seed: int) -> None:
        self._shape = shape
        self._num_clips = num_clips
        self._clip_seed = clip_seed
        self._facts = tuple(facts for facts in all_facts() if split_of(facts) == "train")

    def __len__(self) -> int:
        return self._num_clips

    def facts(self, index: int) -> Mapping[str, str]:
        """Return what clip `index` shows."""
        _check_index(index, len(self))
        turn, place = divmod(index, len(self._facts))
        order = seeded_order(self._clip_seed, "clips", turn, len(self._facts))
        return self._facts[order[place]]

    def clip(self, index: int) -> tuple[Tensor, str]:
        facts = self.facts(index)
        video = render_clip(
            facts,
            derive_seed(self._clip_seed, "clip", index),
            num_frames=self._shape.num_frames,
            height=self._shape.height,
            width=self._shape.width,
            fps=self._shape.fps,
        )
        return video, caption(facts)


class FolderClips:
    """Videos of a folder; see `open_folder_clips`."""

    def __init__(self, items: tuple[tuple[Path, str], ...], shape: ClipShape) -> None:
        self._items = items
        self._shape = shape

    def __len__(self) -> int:
        return len(self._items)

    def clip(self, index: int) -> tuple[Tensor, str]:
        _check_index(index, len(self))
        path, text = self._items[index]
        video, fps = read_mp4(path)
        info = VideoInfo(
            num_frames=video.shape[0], height=video.shape[2], width=video.shape[3], fps=fps
        )
        check_video(path, info, self._shape)
        return video[: self._shape.num_frames], text


def open_folder_clips(folder: Path, shape: ClipShape, *, where: str) -> FolderClips:
    """Return the videos that `captions.jsonl` of the folder names, a line each.

    Every header is checked here, so that a bad file stops the run before it trains. Nothing is
    resized or resampled; of a longer video the first `num_frames` frames are used.

    Raises:
        ValueError: missing folder or file, a bad line (the message names it), or a video of
            another size or frame rate, or with too few frames.
    """
    captions = folder / CAPTIONS_FILE
    if not captions.is_file():
        raise ValueError(
            f"{where}: no {CAPTIONS_FILE} in {str(folder)!r}: expected 'tiny_world' or a folder "
            'with one, of lines {"file": "a.mp4", "text": "..."}.'
        )
    items = []
    for number, line in enumerate(captions.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{captions}:{number}"
        name, text = _caption_line(line, where)
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise ValueError(f"{where}: file: no such file in the folder, got {name!r}.")
        check_video(path, probe_mp4(path), shape)
        items.append((path, text))
    if not items:
        raise ValueError(f"{captions}: no clips: expected one a line, got an empty file.")
    return FolderClips(tuple(items), shape)


def _caption_line(line: str, where: str) -> tuple[str, str]:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}.") from error
    is_complete = isinstance(item, dict) and set(item) == {"file", "text"}
    if not is_complete or not all(isinstance(value, str) for value in item.values()):
        raise ValueError(
            f'{where}: expected an object {{"file": "a.mp4", "text": "..."}}, got {item!r}.'
        )
    return item["file"], item["text"]


def check_video(path: Path, info: VideoInfo, shape: ClipShape) -> None:
    """Raise ValueError unless a video, by its header, is of the size and rate that is asked for."""
    if (info.height, info.width) != (shape.height, shape.width):
        raise ValueError(
            f"{path}: wrong size: expected {shape.height}x{shape.width} (height x width), "
            f"got {info.height}x{info.width}. Resize the file or change the model's size."
        )
    if abs(info.fps - shape.fps) > 0.01:
        raise ValueError(
            f"{path}: wrong frame rate: expected {shape.fps} fps, got {info.fps:g}. "
            "Resample the file or change the model's fps."
        )
    if info.num_frames < shape.num_frames:
        raise ValueError(
            f"{path}: too short: expected at least {shape.num_frames} frames, "
            f"got {info.num_frames}. Remove it from the list."
        )


def _check_index(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise IndexError(f"clip index: expected 0 to {count - 1}, got {index}.")
