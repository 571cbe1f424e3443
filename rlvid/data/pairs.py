"""Preference pairs that a user made: two videos of one prompt, of which one is better."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvid.data.clips import ClipShape, FolderClips, check_video
from rlvid.data.prompts import with_media
from rlvid.data.video_files import probe_mp4
from rlvid.records import Prompt
from rlvid.seeds import prompt_id

PAIRS_FILE = "pairs.jsonl"
_FIELDS = ("text", "chosen", "rejected")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderPairs:
    """What a folder's `pairs.jsonl` says."""

    clips: FolderClips
    pairs: tuple[tuple[int, int], ...]
    """(chosen, rejected) places among the clips."""
    prompts: tuple[Prompt, ...]
    """Of each pair; with its media, if the line names some."""


def open_folder_pairs(folder: Path, shape: ClipShape) -> FolderPairs:
    """Return the pairs of a folder, and their clips.

    Every header is checked here, so that a bad file stops the run before it trains. A file that is
    in several pairs of one text is one clip.

    Raises:
        ValueError: missing folder or file, a bad line (the message names it), or a video of another
            size or frame rate, or with too few frames.
    """
    places: dict[tuple[Path, str], int] = {}
    pairs, prompts = [], []
    for where, prompt, names in pair_lines(folder):
        files = [_video(folder, name, shape, where) for name in names]
        if files[0] == files[1]:
            raise ValueError(f"{where}: expected two videos, got {names[0]!r} as both.")
        chosen, rejected = (places.setdefault((f, prompt.text), len(places)) for f in files)
        pairs.append((chosen, rejected))
        prompts.append(prompt)
    return FolderPairs(
        clips=FolderClips(tuple(places), shape), pairs=tuple(pairs), prompts=tuple(prompts)
    )


def pair_lines(folder: Path) -> Iterator[tuple[str, Prompt, tuple[str, str]]]:
    """Yield (place of the line, prompt, names of chosen and rejected video), at least one.

    Raises:
        ValueError: missing folder or file, or a bad line (the message names it).
    """
    listed = folder / PAIRS_FILE
    if not listed.is_file():
        raise ValueError(
            f"dpo.pairs: no {PAIRS_FILE} in {str(folder)!r}: expected a data set of phase "
            "data_engine, or a folder with such a file, of lines "
            '{"text": "...", "chosen": "a.mp4", "rejected": "b.mp4"}.'
        )
    is_empty = True
    for number, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where, is_empty = f"{listed}:{number}", False
        item = _pair_line(line, where)
        plain = Prompt(prompt_id=prompt_id(item["text"]), text=item["text"])
        prompt = with_media(plain, item.get("media", {}), where=where, folder=folder)
        yield where, prompt, (item["chosen"], item["rejected"])
    if is_empty:
        raise ValueError(f"{listed}: no pairs: expected one a line, got an empty file.")


def _pair_line(line: str, where: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}.") from error
    is_complete = isinstance(item, dict) and set(item) - {"media"} == set(_FIELDS)
    if not is_complete or not all(isinstance(item[name], str) for name in _FIELDS):
        raise ValueError(
            f'{where}: expected an object {{"text": "...", "chosen": "a.mp4", "rejected": '
            f'"b.mp4"}} and at most "media" beside, got {item!r}.'
        )
    found: dict[str, Any] = item
    return found


def _video(folder: Path, name: str, shape: ClipShape, where: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise ValueError(f"{where}: no such file in the folder, got {name!r}.")
    check_video(path, probe_mp4(path), shape)
    return path
