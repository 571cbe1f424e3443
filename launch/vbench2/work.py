"""Which videos of a folder belong to which prompt of the benchmark.

Names are the benchmark's: the prompt's first 180 characters, "-", a number from 0, ".mp4", either
in a folder named after the dimension or all in one. A prompt of several dimensions may use the same
file for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlvid.data.video_files import decode_mp4
from rlvid.evaluation.vbench2.dimensions import DIMENSIONS
from rlvid.evaluation.vbench2.items import Item
from rlvid.rewards.judges.frames import Frames

STEM_CHARACTERS = 180
MAX_PIXELS = 2**30
"""Of a video, all frames together: 1165 frames of 720x1280, 3.2 GB as RGB."""
OF_A_PROMPT = ("Diversity",)
"""Dimensions that compare the videos of a prompt: one value for all of them."""


class UnreadableError(RuntimeError):
    """The file is no video that can be decoded; what it stands for is left unjudged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What gets one value: a video, or the videos of a prompt, under one item."""

    key: str
    """"Dimension/name of the file", or of the prompt; with "#2" where a prompt comes twice."""
    item: Item
    videos: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkList:
    """What a folder holds of the benchmark."""

    works: tuple[Work, ...]
    absent: Mapping[str, int]
    """Dimension to the number of its videos that are not there."""
    strangers: tuple[str, ...]
    """Files that are of no prompt asked for; a misspelt name is among them."""


def stem_of(item: Item) -> str:
    """Return what the files of a prompt are called, without their number."""
    return item.text[:STEM_CHARACTERS]


def read_frames(path: Path) -> tuple[Frames, float]:
    """Return a video as uint8 [T, H, W, 3] and its frame rate; UnreadableError if it is none."""
    try:
        return decode_mp4(path.read_bytes(), max_pixels=MAX_PIXELS)
    except (ValueError, OSError) as error:
        raise UnreadableError(f"{path}: {error}") from error


def find_work(folder: Path, items: Sequence[Item], dimensions: Collection[str] = ()) -> WorkList:
    """Match the files of a folder with the prompts.

    Args:
        dimensions: those wanted; all when empty.

    Raises:
        ValueError: an unknown dimension, no folder, or no file of any prompt in it.
    """
    unknown = sorted(set(dimensions) - set(DIMENSIONS))
    if unknown:
        raise ValueError(
            f"vbench2: unknown dimension {', '.join(unknown)}; expected some of "
            f"{', '.join(DIMENSIONS)}."
        )
    if not folder.is_dir():
        raise ValueError(f"vbench2: no folder {str(folder)!r} with the videos.")
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.mp4"))}
    works: list[Work] = []
    absent: Counter[str] = Counter()
    used: set[Path] = set()
    times: Counter[str] = Counter()
    for item in items:
        if dimensions and item.dimension not in dimensions:
            continue
        videos, num_absent = _videos(files, item)
        used.update(videos)
        absent[item.dimension] += num_absent
        for name, group in _grouped(item, videos):
            key = f"{item.dimension}/{name}"
            times[key] += 1
            key = key if times[key] == 1 else f"{key}#{times[key]}"
            works.append(Work(key=key, item=item, videos=group))
    if not works:
        raise ValueError(
            f"vbench2: none of the {len(files)} .mp4 files in {str(folder)!r} is of a prompt asked "
            f"for. Expected names like {_example(items, dimensions)!r}, in folders named after the "
            "dimensions or all in one."
        )
    strangers = tuple(name for name, path in files.items() if path not in used)
    return WorkList(works=tuple(works), absent=dict(absent), strangers=strangers)


def _videos(files: Mapping[str, Path], item: Item) -> tuple[tuple[Path, ...], int]:
    """Return the files of an item in the order of their numbers, and how many are not there."""
    found = []
    wanted = DIMENSIONS[item.dimension].num_videos
    for number in range(wanted):
        name = f"{stem_of(item)}-{number}.mp4"
        path = files.get(f"{item.dimension}/{name}") or files.get(name)
        if path is not None:
            found.append(path)
    return tuple(found), wanted - len(found)


def _grouped(item: Item, videos: tuple[Path, ...]) -> list[tuple[str, tuple[Path, ...]]]:
    if item.dimension in OF_A_PROMPT:
        return [(stem_of(item), videos)] if videos else []
    return [(path.name, (path,)) for path in videos]


def _example(items: Sequence[Item], dimensions: Collection[str]) -> str:
    wanted = [item for item in items if not dimensions or item.dimension in dimensions]
    return f"{stem_of(wanted[0])}-0.mp4" if wanted else "<prompt>-0.mp4"
