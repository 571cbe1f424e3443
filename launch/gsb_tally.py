"""`rlvid gsb tally`: what the votes on a sheet say, people and models apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlvid.durable import write_file
from rlvid.evaluation.gsb import Tally, tally
from rlvid.evaluation.gsb_votes import MODEL_PREFIX, Vote, read_votes
from rlvid.launch.gsb import load_key

if TYPE_CHECKING:
    from rich.table import Table

TALLY = "tally.json"
PEOPLE = "people"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTally:
    """The result of the people together, or of one model."""

    voters: str
    """`PEOPLE`, or the name of the model that voted."""
    tally: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetTally:
    """What tally.json holds."""

    policy_a: str
    policy_b: str
    confidence: float
    groups: tuple[GroupTally, ...]
    files: tuple[str, ...]
    torn_lines: tuple[str, ...]
    """Ends of files that a crash cut short; they are no votes."""


def tally_sheet(
    folder: Path, files: Sequence[Path] = (), *, confidence: float = 0.95
) -> SheetTally:
    """Count the votes of a sheet, people together and each model by itself; write tally.json.

    Args:
        files: of votes; () takes every votes*.jsonl in the folder.

    Raises:
        ValueError: no sheet, no votes, or a line that is no vote on it.
    """
    key = load_key(folder)
    files = list(files) or sorted(folder.glob("votes*.jsonl"))
    read = [read_votes(path, key.sides) for path in files]
    votes = [vote for one in read for vote in one.votes]
    if not votes:
        raise ValueError(
            f"gsb tally: no votes in {', '.join(map(str, files)) or f'{folder}/votes*.jsonl'}: "
            "expected some. Collect them with `rlvid gsb serve`, or give downloaded files by "
            "--votes."
        )
    groups = [
        GroupTally(voters=name, tally=tally(chosen, key.sides, confidence=confidence))
        for name, chosen in _by_group(votes).items()
    ]
    result = SheetTally(
        policy_a=key.policy_a,
        policy_b=key.policy_b,
        confidence=confidence,
        groups=tuple(groups),
        files=tuple(str(path) for path in files),
        torn_lines=tuple(one.torn_line for one in read if one.torn_line),
    )
    write_file(folder / TALLY, [(json.dumps(asdict(result), indent=1) + "\n").encode()])
    return result


def render(result: SheetTally) -> Table:
    """Return a table of the result for rich."""
    from rich.table import Table

    share = f"{100 * result.confidence:g} %"
    table = Table(
        title=f"{result.policy_b} against {result.policy_a}: good = {result.policy_b} preferred",
        title_justify="left",
    )
    table.add_column("voters")
    table.add_column("axis")
    for heading in ("good", "same", "bad", "GSB", f"{share} interval", "pairs", "voters", "kappa"):
        table.add_column(heading, justify="right")
    for group in result.groups:
        for place, axis in enumerate(group.tally.axes):
            known = axis.low is not None and axis.high is not None
            table.add_row(
                group.voters if place == 0 else "",
                axis.axis,
                *map(str, (axis.good, axis.same, axis.bad)),
                _signed(axis.gsb),
                f"[{_signed(axis.low)}, {_signed(axis.high)}]" if known else "-",
                str(axis.num_pairs),
                str(axis.num_voters),
                "-" if axis.kappa is None else f"{axis.kappa:.2f}",
                end_section=place == len(group.tally.axes) - 1,
            )
    return table


def _by_group(votes: Sequence[Vote]) -> dict[str, list[Vote]]:
    groups: dict[str, list[Vote]] = {}
    for vote in votes:
        name = vote.voter if vote.voter.startswith(MODEL_PREFIX) else PEOPLE
        groups.setdefault(name, []).append(vote)
    return dict(sorted(groups.items(), key=lambda item: (item[0] != PEOPLE, item[0])))


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"
