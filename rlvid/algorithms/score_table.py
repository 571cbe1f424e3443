"""From single scores to one table per scorer, with the missing ones counted.

Made once a step by the driver, which hands it on; nobody else arranges scores. Letters: P groups of
a step, G rollouts in a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvid.records import Score


class MissingScoresError(RuntimeError):
    """More scores of one scorer are missing than the recipe allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    """The scores of one step."""

    group_ids: tuple[str, ...]
    """[P] order of the rows."""
    values: Mapping[str, Tensor]
    """Scorer to [P, G] float32, NaN where the score is missing."""
    num_missing: Mapping[str, int]
    """Scorer to the number of NaN in its table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTable:
    """What credit is given for: scores after gates and the like, each with its weight in force."""

    group_ids: tuple[str, ...]
    """[P] order of the rows."""
    values: Mapping[str, Tensor]
    """Name to [P, G], NaN where a rollout cannot be judged."""
    weights: Mapping[str, float]
    """Name to the weight of its normalised values; the names of `values`."""

    def check(self, group_ids: Iterable[str], group_size: int) -> None:
        """Raise ValueError unless the table is of these groups, and of this shape."""
        if set(self.group_ids) != set(group_ids) or len(set(self.group_ids)) != len(self.group_ids):
            raise ValueError(
                f"reward table: groups: expected {sorted(group_ids)}, got {sorted(self.group_ids)}"
            )
        expected = (len(self.group_ids), group_size)
        for name, values in self.values.items():
            if tuple(values.shape) != expected:
                raise ValueError(
                    f"reward table: {name!r}: expected shape {expected}, got {tuple(values.shape)}"
                )


def score_table(
    scores: Iterable[Score],
    *,
    scorers: Sequence[str],
    group_ids: Sequence[str],
    group_size: int,
    max_missing_frac: float,
) -> ScoreTable:
    """Arrange `scores` as one table per scorer.

    A score that never came counts as missing like one whose scorer failed. Missing is NaN, which
    the advantage masks; it is never 0, because infrastructure that failed says nothing of a video.

    Args:
        scorers: every scorer that had to answer, by label.
        group_ids: [P] order of the rows.
        max_missing_frac: largest share of missing scores one scorer may have.

    Raises:
        MissingScoresError: a scorer misses more than that.
        ValueError: a score of an unknown group, index or scorer, or two for one rollout.
    """
    row = {group_id: number for number, group_id in enumerate(group_ids)}
    values = {name: torch.full((len(group_ids), group_size), torch.nan) for name in scorers}
    first_error: dict[str, str] = {}
    seen: set[tuple[str, str, int]] = set()
    for score in scores:
        key = (score.scorer, score.group_id, score.index)
        if score.scorer not in values or score.group_id not in row:
            raise ValueError(f"score of an unknown scorer or group: {key}")
        if not 0 <= score.index < group_size:
            raise ValueError(f"score {key}: index must be in [0, {group_size})")
        if key in seen:
            raise ValueError(f"score {key} was given twice")
        seen.add(key)
        if score.value is None:
            first_error.setdefault(score.scorer, score.error or "no reason given")
        else:
            values[score.scorer][row[score.group_id], score.index] = score.value
    num_missing = {name: int(table.isnan().sum()) for name, table in values.items()}
    for name, missing in num_missing.items():
        _check_share(name, missing, values[name].numel(), max_missing_frac, first_error)
    return ScoreTable(group_ids=tuple(group_ids), values=values, num_missing=num_missing)


def _check_share(
    name: str, missing: int, total: int, max_missing_frac: float, first_error: Mapping[str, str]
) -> None:
    if missing <= max_missing_frac * total:
        return
    raise MissingScoresError(
        f"rewards: scorer {name!r} gave no score for {missing} of {total} videos "
        f"({missing / total:.0%}, rewards.max_missing_frac is {max_missing_frac:g}). "
        f"First error: {first_error.get(name, 'it never answered')}. "
        "Mend the scorer, or raise the limit."
    )
