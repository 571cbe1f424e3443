"""Preference pairs that a user made: two videos of one prompt, of which one is better."""

from __future__ import annotations

import json
from pathlib import Path

from rlvid.data.clips import ClipShape, FolderClips, check_video
from rlvid.data.video_files import probe_mp4

PAIRS_FILE = "pairs.jsonl"
_FIELDS = ("text", "chosen", "rejected")


def open_folder_pairs(
    folder: Path, shape: ClipShape
) -> tuple[FolderClips, tuple[tuple[int, int], ...]]:
    """Return the clips that `pairs.jsonl` of a folder names, and (chosen, rejected) places of them.

    Every header is checked here, so that a bad file stops the run before it trains. A file that is
    in several pairs of one text is one clip.

    Raises:
        ValueError: missing folder or file, a bad line (the message names it), or a video of another
            size or frame rate, or with too few frames.
    """
    listed = folder / PAIRS_FILE
    if not listed.is_file():
        raise ValueError(
            f"dpo.pairs: no {PAIRS_FILE} in {str(folder)!r}: expected a data set of phase "
            "data_engine, or a folder with such a file, of lines "
            '{"text": "...", "chosen": "a.mp4", "rejected": "b.mp4"}.'
        )
    places: dict[tuple[Path, str], int] = {}
    pairs = []
    for number, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{listed}:{number}"
        text, *names = _pair_line(line, where)
        files = [_video(folder, name, shape, where) for name in names]
        if files[0] == files[1]:
            raise ValueError(f"{where}: expected two videos, got {names[0]!r} as both.")
        chosen, rejected = (places.setdefault((file, text), len(places)) for file in files)
        pairs.append((chosen, rejected))
    if not pairs:
        raise ValueError(f"{listed}: no pairs: expected one a line, got an empty file.")
    return FolderClips(tuple(places), shape), tuple(pairs)


def _pair_line(line: str, where: str) -> list[str]:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}.") from error
    is_complete = isinstance(item, dict) and set(item) == set(_FIELDS)
    if not is_complete or not all(isinstance(value, str) for value in item.values()):
        raise ValueError(
            f'{where}: expected an object {{"text": "...", "chosen": "a.mp4", "rejected": '
            f'"b.mp4"}}, got {item!r}.'
        )
    return [item[name] for name in _FIELDS]


def _video(folder: Path, name: str, shape: ClipShape, where: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise ValueError(f"{where}: no such file in the folder, got {name!r}.")
    check_video(path, probe_mp4(path), shape)
    return path
