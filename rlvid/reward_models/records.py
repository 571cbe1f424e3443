"""Preference records: a folder of clips and a file that says which of two is preferred.

`preferences.jsonl` has an object a line:

    {"a": "one.mp4", "b": "two.mp4", "prompt": "...", "labels": {"VQ": "A", "MQ": "tie"}}

A part that is not named was not labelled.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvid.data.clips import ClipShape
from rlvid.data.video_files import probe_mp4, read_mp4
from rlvid.reward_models import PARTS
from rlvid.reward_models.losses import A_WINS, B_WINS, TIE
from rlvid.reward_models.pairs import PairSet, PreferencePair, labels_of

PREFERENCES_FILE = "preferences.jsonl"
LABELS: Mapping[str, float] = {"A": A_WINS, "B": B_WINS, "tie": TIE}
_KEYS = {"a", "b", "prompt", "labels"}
MAX_BYTES = 2 * 2**30
"""Decoded clips kept in memory. By bytes: 22 clips of 81 frames of 480x832, or 41 000 of the tiny
world."""


class ClipFiles:
    """MP4 files, decoded when asked for; the least recently used leave memory first."""

    def __init__(
        self, paths: tuple[Path, ...], num_frames: int, *, max_bytes: int = MAX_BYTES
    ) -> None:
        """`max_bytes` bounds the decoded clips that are kept; the newest is kept whatever it is."""
        self._paths = paths
        self._num_frames = num_frames
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, Tensor] = OrderedDict()
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._paths)

    def clip(self, index: int) -> Tensor:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        clip = self._decode(index)
        self._kept[index] = clip
        self._kept_bytes += clip.nbytes
        while self._kept_bytes > self._max_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.nbytes
        return clip

    def _decode(self, index: int) -> Tensor:
        video, _ = read_mp4(self._paths[index])
        return video[: self._num_frames].mul(255.0).round().to(torch.uint8)


def read_preferences(folder: Path, shape: ClipShape) -> PairSet:
    """Return the pairs of a folder; every line and every header is checked here.

    Raises:
        ValueError: the message names the file, the line and what was expected.
    """
    source = folder / PREFERENCES_FILE
    if not source.is_file():
        raise ValueError(
            f"reward_model.pairs.source: no {PREFERENCES_FILE} in {str(folder)!r}: expected 'weak' "
            'or a folder with one, of lines {"a": "one.mp4", "b": "two.mp4", "prompt": "...", '
            '"labels": {"VQ": "A"}}.'
        )
    paths: dict[Path, int] = {}
    pairs = []
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        record = _record(line, where)
        indices = []
        for side in ("a", "b"):
            path = _clip_path(folder, record[side], f"{where}: {side}")
            if path not in paths:
                _check_clip(path, shape, f"{where}: {side}")
            indices.append(paths.setdefault(path, len(paths)))
        if indices[0] == indices[1]:
            raise ValueError(f"{where}: a and b: expected two clips, got {record['a']!r} twice.")
        pairs.append(
            PreferencePair(
                first=indices[0],
                second=indices[1],
                prompt=record["prompt"],
                labels=_labels(record["labels"], f"{where}: labels"),
                kind="record",
            )
        )
    if not pairs:
        raise ValueError(f"{source}: no pairs: expected one a line, got an empty file.")
    return PairSet(clips=ClipFiles(tuple(paths), shape.num_frames), pairs=tuple(pairs))


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}.") from error
    if not isinstance(record, dict) or set(record) != _KEYS:
        got = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{where}: expected an object with {sorted(_KEYS)}, got {got}.")
    for key in ("a", "b", "prompt"):
        if not isinstance(record[key], str) or not record[key].strip():
            raise ValueError(f"{where}: {key}: expected text, got {record[key]!r}.")
    return record


def _labels(given: object, where: str) -> tuple[float, ...]:
    if not isinstance(given, dict) or not given:
        raise ValueError(f'{where}: expected e.g. {{"VQ": "A", "MQ": "tie"}}, got {given!r}.')
    for part, label in given.items():
        if part not in PARTS:
            raise ValueError(f"{where}: unknown part {part!r}: expected {', '.join(PARTS)}.")
        if label not in LABELS:
            raise ValueError(f"{where}: {part}: expected one of A, B, tie, got {label!r}.")
    return labels_of(**{part: LABELS[label] for part, label in given.items()})


def _clip_path(folder: Path, name: str, where: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise ValueError(f"{where}: no such file in the folder, got {name!r}.")
    return path


def _check_clip(path: Path, shape: ClipShape, where: str) -> None:
    info = probe_mp4(path)
    wanted = f"{shape.num_frames} frames or more of {shape.height}x{shape.width} at {shape.fps} fps"
    fits = (info.height, info.width) == (shape.height, shape.width)
    if not fits or abs(info.fps - shape.fps) > 0.01 or info.num_frames < shape.num_frames:
        raise ValueError(
            f"{where}: {path.name}: expected {wanted} (the model section), got {info.num_frames} "
            f"of {info.height}x{info.width} at {info.fps:g} fps. Convert the file."
        )
