"""The table of a run's stages: scores and axes of each, and Good / Same / Bad against others.

The form is that of arXiv:2604.25427 (VQ, MQ, TA and overall, each as GSB), with judges in place of
people: a clip of the newer stage is good where its score is above that of the older one's clip by
more than a margin. Clips of a pair have one prompt and one starting noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlvid.evaluation.drift import HeldOut, Pair
from rlvid.evaluation.gsb import VALUES, Verdict
from rlvid.evaluation.shares import Share, share_of
from rlvid.evaluation.statistics import mean_interval, paired_bootstrap


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table: a scorer, or an axis that is the mean of several."""

    name: str
    labels: tuple[str, ...]
    """Of the scorers that it is the mean of."""
    trained: bool
    """Whether the run trained on any of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSettings:
    """How differences become verdicts and intervals."""

    tie_margin: float
    """In standard deviations of the base's scores on the same prompts."""
    num_bootstrap: int = 10_000
    confidence: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A stage against an earlier one on one line, over the clips that both have a score of."""

    difference: float
    low: float
    """Bootstrap interval, whole prompts resampled."""
    high: float
    gsb: float
    """(good - bad) / (good + same + bad), in [-1, 1]."""
    gsb_low: float
    gsb_high: float
    good: int
    same: int
    bad: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One line of one stage on one set of prompts."""

    mean: float
    """Over the clips it has a score of."""
    vs_base: Change | None
    """None of the base itself."""
    vs_before: Change | None
    """Against the stage before; None of the base."""
    share_of_gain: Share | None
    """Of its teacher's gain over the base; None where it has no teacher, or that no sure gain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One stage on one set of prompts: what was seen, and what it is compared with."""

    name: str
    scores: HeldOut
    """A clip that a scorer missed, or does not judge, is not there."""
    motion: Mapping[Pair, float] = field(default_factory=dict)
    """`motion.mean_motion` of every clip."""
    before: str | None = None
    """Name of the stage before; None of the base, which is the one without."""
    teacher: str | None = None


def table(
    columns: Sequence[Measured], lines: Sequence[Line], settings: TableSettings
) -> dict[str, dict[str, Cell]]:
    """Return stage to line to cell.

    Args:
        columns: the base first, and every stage behind those that it names.

    Raises:
        ValueError: two stages that are to be compared have no clip with a score of both.
    """
    found = {column.name: column for column in columns}
    base = columns[0]
    spread = {line.name: _spread(base, line) for line in lines}
    return {
        column.name: {
            line.name: _cell(column, found, base, line, spread[line.name], settings)
            for line in lines
        }
        for column in columns
    }


def motion_share(student: Measured, teacher: Measured, settings: TableSettings) -> Share | None:
    """Return how much of its teacher's motion a student has."""
    pairs = sorted(set(student.motion) & set(teacher.motion))
    return share_of(
        [student.motion[pair] for pair in pairs],
        [teacher.motion[pair] for pair in pairs],
        [prompt for prompt, _ in pairs],
        num_bootstrap=settings.num_bootstrap,
        confidence=settings.confidence,
    )


def verdict_between(difference: float, margin: float) -> Verdict:
    """Return what a difference of two scores says of the second clip."""
    if abs(difference) <= margin:
        return "same"
    return "good" if difference > 0.0 else "bad"


def paired_scores(
    columns: Sequence[Measured], line: Line
) -> tuple[list[Pair], tuple[list[float], ...]]:
    """Return the clips on which the columns can be compared, and each one's values there.

    A clip's value is the mean of the line's scorers that judged it in every column: a scorer may
    leave out prompts of kinds that are not its own.

    Raises:
        ValueError: there is no such clip.
    """
    labels: dict[Pair, list[str]] = {}
    for label in line.labels:
        scored = [set(column.scores.get(label, {})) for column in columns]
        for pair in set.intersection(*scored):
            labels.setdefault(pair, []).append(label)
    if not labels:
        names = " and ".join(repr(column.name) for column in columns)
        raise ValueError(
            f"evaluate.stages: {line.name!r} gave no score for {names} on any held-out pair; take "
            "more prompts, or run `rlvid doctor` and look at the scorer's errors in the reward "
            "actor's log"
        )
    pairs = sorted(labels)
    values = tuple(
        [statistics.fmean(column.scores[label][pair] for label in labels[pair]) for pair in pairs]
        for column in columns
    )
    return pairs, values


def _spread(base: Measured, line: Line) -> float:
    _, (values,) = paired_scores([base], line)
    return statistics.pstdev(values)


def _cell(
    column: Measured,
    found: Mapping[str, Measured],
    base: Measured,
    line: Line,
    spread: float,
    settings: TableSettings,
) -> Cell:
    _, (values,) = paired_scores([column], line)
    before = found[column.before] if column.before else None
    teacher = found[column.teacher] if column.teacher else None
    return Cell(
        mean=statistics.fmean(values),
        vs_base=_change(base, column, line, spread, settings) if before else None,
        vs_before=_change(before, column, line, spread, settings) if before else None,
        share_of_gain=_share_of_gain(base, teacher, column, line, settings) if teacher else None,
    )


def _change(
    first: Measured, second: Measured, line: Line, spread: float, settings: TableSettings
) -> Change:
    pairs, (before, after) = paired_scores([first, second], line)
    prompts = [prompt for prompt, _ in pairs]
    found = paired_bootstrap(
        before,
        after,
        prompts,
        num_bootstrap=settings.num_bootstrap,
        confidence=settings.confidence,
    )
    margin = settings.tie_margin * spread
    verdicts = [verdict_between(b - a, margin) for a, b in zip(before, after, strict=True)]
    gsb, low, high = mean_interval(
        [VALUES[verdict] for verdict in verdicts],
        prompts,
        num_bootstrap=settings.num_bootstrap,
        confidence=settings.confidence,
    )
    return Change(
        difference=found.mean_difference,
        low=found.low,
        high=found.high,
        gsb=gsb,
        gsb_low=low,
        gsb_high=high,
        good=verdicts.count("good"),
        same=verdicts.count("same"),
        bad=verdicts.count("bad"),
    )


def _share_of_gain(
    base: Measured, teacher: Measured, student: Measured, line: Line, settings: TableSettings
) -> Share | None:
    pairs, (start, whole, part) = paired_scores([base, teacher, student], line)
    return share_of(
        [value - zero for value, zero in zip(part, start, strict=True)],
        [value - zero for value, zero in zip(whole, start, strict=True)],
        [prompt for prompt, _ in pairs],
        num_bootstrap=settings.num_bootstrap,
        confidence=settings.confidence,
    )
