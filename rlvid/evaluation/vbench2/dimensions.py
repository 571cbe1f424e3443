"""The table of VBench-2.0's dimensions, and how their scores become groups and a total."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Group = Literal["Creativity", "Commonsense", "Controllability", "Human Fidelity", "Physics"]
Judged = Literal["questions", "description", "specialist"]
"""questions: yes/no to a model that sees. description: it describes, a model that reads decides.
specialist: a network for the purpose, or geometry."""

EXCLUDED_LIMIT = 0.9
"""Share of excluded videos above which motion order understanding scores 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One of the 18."""

    name: str
    """As in the benchmark's prompt file."""
    group: Group
    judged: Judged
    num_videos: int = 3
    """Of a prompt, each from a seed of its own."""
    scores_mostly_excluded_as_zero: bool = False
    """Above EXCLUDED_LIMIT: a model that never shows what can be judged does not go free."""


def _of(group: Group, judged: Judged, *names: str) -> tuple[Dimension, ...]:
    return tuple(Dimension(name=name, group=group, judged=judged) for name in names)


DIMENSIONS: Mapping[str, Dimension] = {
    dimension.name: dimension
    for dimension in (
        Dimension(name="Diversity", group="Creativity", judged="specialist", num_videos=20),
        *_of("Creativity", "questions", "Composition"),
        *_of("Commonsense", "questions", "Motion_Rationality"),
        *_of("Commonsense", "specialist", "Instance_Preservation"),
        *_of("Controllability", "questions", "Dynamic_Spatial_Relationship", "Dynamic_Attribute"),
        Dimension(
            name="Motion_Order_Understanding",
            group="Controllability",
            judged="description",
            scores_mostly_excluded_as_zero=True,
        ),
        *_of(
            "Controllability",
            "description",
            "Human_Interaction",
            "Complex_Landscape",
            "Complex_Plot",
        ),
        *_of("Controllability", "specialist", "Camera_Motion"),
        *_of("Human Fidelity", "specialist", "Human_Anatomy", "Human_Identity"),
        *_of("Human Fidelity", "questions", "Human_Clothes"),
        *_of("Physics", "questions", "Mechanics", "Thermotics", "Material"),
        *_of("Physics", "specialist", "Multi-View_Consistency"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DimensionResult:
    """One dimension over all its videos."""

    name: str
    value: float | None
    """In [0, 1]; None where no video could be judged."""
    num_judged: int
    num_excluded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a leaderboard shows."""

    groups: Mapping[Group, float]
    total: float | None
    """Mean of the five groups; None while one of them is missing."""
    mean: float
    """Mean of the dimensions there are, as GigaVideo-1's table has it."""
    missing: tuple[str, ...]
    """Dimensions without a value."""


def dimension_result(name: str, videos: Sequence[float | None]) -> DimensionResult:
    """Return the mean of the videos' values; None is a video that the rule excludes.

    Raises:
        ValueError: no such dimension.
    """
    dimension = known(name)
    judged = [value for value in videos if value is not None]
    excluded = len(videos) - len(judged)
    value = statistics.fmean(judged) if judged else None
    if dimension.scores_mostly_excluded_as_zero and excluded > EXCLUDED_LIMIT * len(videos):
        value = 0.0
    return DimensionResult(name=name, value=value, num_judged=len(judged), num_excluded=excluded)


def totals(values: Mapping[str, float | None]) -> Totals:
    """Return group means, their mean, and the mean of all dimensions.

    A group is the mean of its dimensions and the total the mean of the groups, so a dimension of a
    small group weighs more; a missing one is left out of its group and named, never counted as 0.

    Raises:
        ValueError: an unknown dimension, or none with a value.
    """
    for name in values:
        known(name)
    there = {name: value for name, value in values.items() if value is not None}
    if not there:
        raise ValueError("vbench2: expected a value for one dimension at least, got none.")
    groups: dict[Group, float] = {}
    for dimension in DIMENSIONS.values():
        of_group = [
            there[d.name]
            for d in DIMENSIONS.values()
            if d.group == dimension.group and d.name in there
        ]
        if of_group:
            groups[dimension.group] = statistics.fmean(of_group)
    num_groups = len({dimension.group for dimension in DIMENSIONS.values()})
    return Totals(
        groups=groups,
        total=statistics.fmean(groups.values()) if len(groups) == num_groups else None,
        mean=statistics.fmean(there.values()),
        missing=tuple(name for name in DIMENSIONS if name not in there),
    )


def known(name: str) -> Dimension:
    """Return a dimension by its name; ValueError names those there are."""
    if name not in DIMENSIONS:
        raise ValueError(
            f"vbench2: unknown dimension {name!r}; expected one of {', '.join(DIMENSIONS)}."
        )
    return DIMENSIONS[name]
