"""Votes of a side-by-side comparison: the record, its check, and an append-only JSONL file of them.

A vote names sides, never policies: who votes, who stores votes and who mails them stays blind.
`evaluation.gsb` says afterwards what the votes mean.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rlvid.observability.append_log import drop_torn_line

logger = logging.getLogger(__name__)

Choice = Literal["left", "same", "right"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

AXES: Mapping[str, tuple[str, str]] = {
    "VQ": ("Visual quality", "Which one looks better: sharpness, colours, nothing broken?"),
    "MQ": ("Motion quality", "Which one moves better: smooth, steady, as real things do?"),
    "TA": ("Text alignment", "Which one shows better what the text asks for?"),
    "overall": ("Overall", "Which one would you rather have?"),
}
"""Name to (title, question): the dimensions of arXiv:2604.25427; the wording is ours."""

MODEL_PREFIX = "vlm:"
"""Begins the name of a voter that is a model; its votes are never counted with those of people."""
MAX_VOTER_CHARACTERS = 64
MAX_TIME_S = 1e11
"""The year 5138; milliseconds taken for seconds lie beyond it."""
_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "pair_id": str,
    "axis": str,
    "choice": str,
    "voter": str,
    "time_s": (int, float),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """Which side of a pair a voter prefers on one axis."""

    pair_id: str
    axis: str
    """A name of `AXES`."""
    choice: Choice
    voter: str
    time_s: float
    """Seconds since the epoch, by the voter's own clock."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteFile:
    """What a file of votes holds."""

    votes: tuple[Vote, ...]
    """In the order of the file."""
    torn_line: str = ""
    """The end of a file whose last line a crash cut short; it is no vote."""


def parse_vote(values: object, pair_ids: Collection[str], *, where: str) -> Vote:
    """Return the vote that an object of JSON describes.

    Raises:
        ValueError: no object, a key missing or unknown, a value of another type, a pair that is not
            of this sheet, or an unknown axis or choice; the message begins with `where`.
    """
    if not isinstance(values, dict) or set(values) != set(_FIELDS):
        got = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{where}: expected an object of {', '.join(_FIELDS)}, got {got}.")
    for name, kind in _FIELDS.items():
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            wanted = "a number" if name == "time_s" else "a text"
            raise ValueError(f"{where}: {name}: expected {wanted}, got {values[name]!r}.")
    if values["pair_id"] not in pair_ids:
        raise ValueError(
            f"{where}: pair_id: no pair {_short(values['pair_id'])} in this sheet of "
            f"{len(pair_ids)} pairs. Give it the votes of its own page."
        )
    for name, known in (("axis", tuple(AXES)), ("choice", CHOICES)):
        if values[name] not in known:
            raise ValueError(
                f"{where}: {name}: expected one of {', '.join(known)}, got {_short(values[name])}."
            )
    _check_voter(values["voter"], where)
    time_s = values["time_s"]
    if not 0 < time_s < MAX_TIME_S:  # NaN and an integer too long for a float fail here as well
        raise ValueError(
            f"{where}: time_s: expected seconds since the epoch, got {_short(time_s)}."
        )
    return Vote(**{**values, "time_s": float(time_s)})


def read_votes(path: Path, pair_ids: Collection[str]) -> VoteFile:
    """Return the votes of a file; a torn last line is reported, any other bad line is an error.

    Raises:
        ValueError: the file cannot be read, or a line is no vote on a pair of the sheet (the
            message names the line).
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"votes: cannot read {str(path)!r}: {error.strerror}.") from error
    lines = text.split("\n")
    votes: list[Vote] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return VoteFile(votes=tuple(votes), torn_line=line)
            raise ValueError(f"{path}:{number}: not JSON: {error}. Remove the line.") from error
        votes.append(parse_vote(values, pair_ids, where=f"{path}:{number}"))
    return VoteFile(votes=tuple(votes))


def last_votes(votes: Iterable[Vote]) -> tuple[Vote, ...]:
    """Return the one vote that counts of each voter, pair and axis: the latest by `time_s`.

    Of votes of one time the later in the sequence counts. Time and not place decides, so that
    files may be given in any order.
    """
    ordered = sorted(votes, key=lambda vote: vote.time_s)
    return tuple({(vote.voter, vote.pair_id, vote.axis): vote for vote in ordered}.values())


class VoteStore:
    """Appends votes to a file, each on the disk before `append` returns; of one process.

    A line that a crash cut short is removed when the file is opened, with a warning: nobody was
    told that this vote is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def open(self) -> None:
        """Open the file; ValueError when another process writes to it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ValueError(
                f"votes: another process writes {str(self.path)!r}. End it first; one server is "
                "enough for any number of voters."
            ) from error
        except OSError as error:
            logger.warning("no file lock, serve it once only path=%s: %s", self.path, error)
        self._mend(descriptor)
        self._descriptor = descriptor

    def append(self, vote: Vote) -> None:
        """Write the vote and wait until it is on the disk; OSError when it cannot be."""
        assert self._descriptor is not None, "open() comes first"
        line = (vote.to_json() + "\n").encode()
        with self._lock:
            written = os.write(self._descriptor, line)
            if written != len(line):
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise OSError(f"{self.path}: only {written} of {len(line)} bytes were written")
            os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _mend(self, descriptor: int) -> None:
        """End the file with a whole line: a vote that lacks only its line end is kept."""
        last = self.path.read_bytes().rpartition(b"\n")[2]
        if not last:
            return
        try:
            json.loads(last)
        except ValueError:
            logger.warning("removed a torn line path=%s line=%r", self.path, last[:200])
            drop_torn_line(self.path)
        else:
            os.write(descriptor, b"\n")


def _check_voter(name: str, where: str) -> None:
    is_named = 0 < len(name) <= MAX_VOTER_CHARACTERS and name.isprintable()
    if not is_named or name != name.strip():
        raise ValueError(
            f"{where}: voter: expected a name of 1 to {MAX_VOTER_CHARACTERS} printable characters "
            f"without spaces around it, got {_short(name)}."
        )


def _short(value: Any) -> str:
    return repr(value)[:80]
