"""The part of the report about a data set: weak dimensions, prompts, clips and their rewards.

`launch/` reads the set and gives a `DataSetData`; `data_view` makes plain values of it that the
template report_data.html.jinja2 lays out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlvid.observability.clips import data_url
from rlvid.observability.value_histogram import value_histogram

KINDS = ("synthetic", "recaption", "real")
"""P_s V_s, P_r V_s and P_r V_r, in the order of the table's columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DimensionRow:
    """How the policy did in one dimension on the broad prompts."""

    name: str
    mean: float
    low: float
    """Bootstrap interval of the mean."""
    high: float
    num_clips: int
    is_weak: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WordGroup:
    """What some of the low scorers have in common."""

    words: str
    num_prompts: int
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WeakRow:
    """A dimension that prompts were written for."""

    name: str
    description: str
    groups: Sequence[WordGroup]
    lowest: Sequence[tuple[str, float | None]]
    """Prompts and their mean scores, lowest first; None where the user gave the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DropRow:
    """One line of a table of what was kept and what dropped."""

    name: str
    numbers: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipsRow:
    """The clips of one dimension, or those of none."""

    name: str
    num_prompts: int
    num_clips: Mapping[str, int]
    """Kind to number."""
    rewards: Sequence[float]
    num_missing: int
    """Rendered clips without a reward: a scorer failed."""
    own_mean: float | None
    """Mean score of the scorer that judges the dimension; None where there is none."""

    @property
    def reward_mean(self) -> float | None:
        return sum(self.rewards) / len(self.rewards) if self.rewards else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownClip:
    """A clip at one end of the set."""

    is_best: bool
    prompt: str
    dimension: str
    reward: float
    scores: Mapping[str, float]
    video: bytes
    """MP4 that browsers play."""
    strip: bytes
    """Some of its frames side by side, PNG."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSetData:
    """Everything the section shows."""

    name: str
    summary: str
    """In one sentence, what the set holds."""
    facts: Sequence[tuple[str, str, str]]
    """Name, value, note."""
    dimensions: Sequence[DimensionRow]
    """Weakest first; () where the user named the weak ones."""
    below: float
    """A dimension is weak when its interval lies below."""
    weak: Sequence[WeakRow]
    prompts: Sequence[DropRow]
    """Numbers of the short form and of the long one."""
    prompts_note: str
    real: Sequence[DropRow]
    """One number each."""
    real_note: str
    clips: Sequence[ClipsRow]
    shown: Sequence[ShownClip] = field(default_factory=tuple)


def data_view(data: DataSetData) -> dict[str, Any]:
    """Return what the template shows."""
    scored = [row for row in data.clips if row.rewards]
    ends = [end for row in scored for end in (min(row.rewards), max(row.rewards))]
    reach = (min(ends, default=0.0), max(ends, default=1.0))
    return {
        "data": data,
        "kinds": KINDS,
        "intervals": interval_bars(data.dimensions, data.below),
        "histograms": [
            value_histogram(
                row.name, row.rewards, reach=reach, unit="reward", num_bins=24, colour=0
            )
            for row in scored
        ],
        "total": total_of(data.clips),
        "ends": [
            {
                "title": title,
                "clips": [clip_view(c) for c in data.shown if c.is_best == is_best],
            }
            for title, is_best in (("Best clips", True), ("Worst clips", False))
        ],
    }


def interval_bars(rows: Sequence[DimensionRow], below: float) -> list[dict[str, float]]:
    """Return places in percent, all on one axis that holds the threshold."""
    values = [value for row in rows for value in (row.low, row.high)] + [below]
    low, high = min(values), max(values)
    scale = 92.0 / ((high - low) or 1.0)

    def place(value: float) -> float:
        return 4.0 + scale * (value - low)

    return [
        {
            "low": place(row.low),
            "high": place(row.high),
            "mean": place(row.mean),
            "below": place(below),
        }
        for row in rows
    ]


def total_of(rows: Sequence[ClipsRow]) -> ClipsRow:
    """Return the sum of all rows."""
    return ClipsRow(
        name="all",
        num_prompts=sum(row.num_prompts for row in rows),
        num_clips={kind: sum(row.num_clips.get(kind, 0) for row in rows) for kind in KINDS},
        rewards=[value for row in rows for value in row.rewards],
        num_missing=sum(row.num_missing for row in rows),
        own_mean=None,
    )


def clip_view(shown: ShownClip) -> dict[str, Any]:
    """Return a clip with its pictures as URLs."""
    return {
        "prompt": shown.prompt,
        "dimension": shown.dimension,
        "reward": shown.reward,
        "scores": shown.scores,
        "video": data_url("video/mp4", shown.video),
        "strip": data_url("image/png", shown.strip),
    }
