"""Why a clip was not taken, and how many went each way; every stage of the intake uses it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

DropReason = Literal[
    "bad_json",
    "missing_caption",
    "not_utf8",
    "empty_caption",
    "caption_too_short",
    "caption_too_long",
    "missing_file",
    "outside_folder",
    "wrong_extension",
    "wrong_columns",
    "unreadable_source",
    "file_too_large",
    "unreadable_video",
    "truncated_video",
    "damaged_video",
    "no_frames",
    "one_frame",
    "too_short",
    "too_long",
    "too_small",
    "too_large",
    "low_frame_rate",
    "wrong_aspect",
    "shots_too_short",
    "static",
    "too_much_motion",
    "low_aesthetic",
    "text_overlay",
    "duplicate",
]
"""In the order in which they are looked for. `unreadable_source` and `wrong_columns` are of a data
set file: they stand for all that could not be read of it, however many clips that is."""
REASONS: tuple[DropReason, ...] = get_args(DropReason)


@dataclass(frozen=True, slots=True)
class Drop:
    """One thing that was seen and not kept."""

    name: str
    """`source:place`, with the line, sample or row of the source as its place."""
    reason: DropReason
    detail: str
    """What was expected and what was found."""


class RefusedError(ValueError):
    """Ends the work on one clip; the intake turns it into a `Drop`."""

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: DropReason = reason
        self.detail = detail


@dataclass(slots=True)
class DropCounts:
    """What became of everything that was seen.

    The three are counted where they happen, so that `is_complete` says something.
    """

    seen: int = 0
    kept: int = 0
    dropped: Counter[DropReason] = field(default_factory=Counter)

    @property
    def is_complete(self) -> bool:
        """Whether everything seen was either kept or dropped for a reason."""
        return self.seen == self.kept + self.dropped.total()

    def __add__(self, other: DropCounts) -> DropCounts:
        return DropCounts(
            seen=self.seen + other.seen,
            kept=self.kept + other.kept,
            dropped=self.dropped + other.dropped,
        )

    def metrics(self) -> dict[str, float]:
        """Return the counts under their metric names; of the reasons those that occurred."""
        named = {"seen": self.seen, "kept": self.kept, "dropped": self.dropped.total()}
        counts = {f"intake/clips/{name}": float(count) for name, count in named.items()}
        return counts | {
            f"intake/dropped/{reason}": float(self.dropped[reason])
            for reason in REASONS
            if self.dropped[reason]
        }

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain values, reasons in the order of `DropReason`."""
        dropped = {reason: self.dropped[reason] for reason in REASONS if self.dropped[reason]}
        return {"seen": self.seen, "kept": self.kept, "dropped": dropped}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DropCounts:
        """Return the counts that `to_json` wrote."""
        return cls(seen=value["seen"], kept=value["kept"], dropped=Counter(value["dropped"]))
