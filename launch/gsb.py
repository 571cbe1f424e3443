"""`rlvid gsb make`: the folder of one blind comparison of two policies.

<folder>/sheet.html      the page: clips, prompts, no word of policies
<folder>/settings.json   what the server needs: sheet id, pair ids
<folder>/key.json        which side shows which policy; mode 600, nobody who votes may see it
<folder>/votes*.jsonl    votes; the server writes votes.jsonl, others may be put beside it
<folder>/tally.json      the result, see `gsb_tally`
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlvid.durable import make_folder, write_file
from rlvid.evaluation.gsb import GsbPair, Side, assign_sides
from rlvid.evaluation.gsb_votes import AXES

if TYPE_CHECKING:
    from rlvid.observability.gsb_page import SidePair

SHEET, SETTINGS, KEY, VOTES = "sheet.html", "settings.json", "key.json", "votes.jsonl"
TITLE = "Which video is better?"


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetSettings:
    """What may be known of a sheet by whoever serves it."""

    title: str
    sheet_id: str
    pair_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetKey:
    """What a sheet keeps from those who vote."""

    policy_a: str
    """Name of what is compared against, e.g. "base"."""
    policy_b: str
    """Name of what is judged: good says that it was preferred."""
    seed: int
    pairs: tuple[GsbPair, ...]
    sides: dict[str, Side]
    """Pair id to the side that shows policy A."""

    def clips_of(self, pair: GsbPair) -> tuple[Path, Path]:
        """Return the files shown left and right."""
        first, second = Path(pair.first), Path(pair.second)
        return (first, second) if self.sides[pair.pair_id] == "left" else (second, first)


def make_sheet(
    folder: Path,
    pairs: Sequence[GsbPair],
    *,
    policies: tuple[str, str],
    seed: int | None = None,
    title: str = TITLE,
) -> SheetSettings:
    """Write page, key and settings into the folder.

    Args:
        policies: names of policy A and policy B, for the tally only.
        seed: decides the sides; None draws one that nobody can guess.

    Raises:
        ValueError: no pairs, a sheet is there already, or the clips of a pair cannot be shown
            together.
    """
    from rlvid.observability.gsb_page import build_gsb_page

    if not pairs:
        raise ValueError("gsb make: no pairs of clips: expected at least one.")
    if policies[0] == policies[1]:
        raise ValueError(f"gsb make: both policies are called {policies[0]!r}: name them apart.")
    seed = secrets.randbits(63) if seed is None else seed
    sides = assign_sides([pair.pair_id for pair in pairs], seed)
    key = SheetKey(
        policy_a=policies[0], policy_b=policies[1], seed=seed, pairs=tuple(pairs), sides=sides
    )
    if (folder / KEY).exists():
        raise ValueError(
            f"gsb make: {str(folder)!r} holds a sheet already, and its votes need its key. Name "
            "another folder."
        )
    page = build_gsb_page(title, AXES, _shown(key))
    settings = SheetSettings(
        title=title, sheet_id=page.sheet_id, pair_ids=tuple(pair.pair_id for pair in pairs)
    )
    make_folder(folder)
    _write_private(folder / KEY, json.dumps(asdict(key), indent=1) + "\n")
    write_file(folder / SETTINGS, [(json.dumps(asdict(settings), indent=1) + "\n").encode()])
    write_file(folder / SHEET, [page.html.encode()])
    return settings


def load_settings(folder: Path) -> SheetSettings:
    """Return the settings of a sheet; ValueError when there is none."""
    tree = _read_json(folder / SETTINGS)
    return SheetSettings(**{**tree, "pair_ids": tuple(tree["pair_ids"])})


def load_key(folder: Path) -> SheetKey:
    """Return the key of a sheet; ValueError when it is not there."""
    tree = _read_json(folder / KEY)
    return SheetKey(**{**tree, "pairs": tuple(GsbPair(**pair) for pair in tree["pairs"])})


def _shown(key: SheetKey) -> Iterator[SidePair]:
    """Yield each pair as it is shown, decoded when it is asked for."""
    from rlvid.data.video_files import read_mp4
    from rlvid.observability.gsb_page import SidePair

    for pair in key.pairs:
        paths = key.clips_of(pair)
        (left, left_fps), (right, right_fps) = (read_mp4(path) for path in paths)
        if round(left_fps) != round(right_fps) or left.shape != right.shape:
            names = sorted(str(path) for path in paths)
            raise ValueError(
                f"gsb make: {names[0]} and {names[1]}: expected clips of one size, length and "
                f"frame rate, or people see which policy is which; got {tuple(left.shape)} at "
                f"{left_fps:g} fps and {tuple(right.shape)} at {right_fps:g} fps. Make them alike."
            )
        yield SidePair(
            pair_id=pair.pair_id,
            prompt=pair.prompt,
            left=left,
            right=right,
            fps=max(1, round(left_fps)),
        )


def _write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone can read, from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"gsb: cannot read {str(path)!r} ({error.strerror}): expected the folder of a sheet. "
            "Make one with `rlvid gsb make`."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"gsb: {str(path)!r} is damaged: {error}. Restore it from a copy."
        ) from error
    return tree
