"""Scores become one table per scorer, and what is missing stays missing."""

from __future__ import annotations

import math

import pytest

from rlvid.algorithms.score_table import MissingScoresError, ScoreTable, score_table
from rlvid.records import Score


def score(group: str, index: int, value: float | None, scorer: str = "physics") -> Score:
    error = None if value is not None else "OSError: no disk"
    return Score(group_id=group, index=index, scorer=scorer, value=value, error=error)


def table(scores: list[Score], max_missing_frac: float = 1.0) -> ScoreTable:
    return score_table(
        scores,
        scorers=["physics"],
        group_ids=["a", "b"],
        group_size=2,
        max_missing_frac=max_missing_frac,
    )


def test_scores_land_in_their_row_and_column_whatever_the_order() -> None:
    scores = [score("b", 1, 4.0), score("a", 0, 1.0), score("b", 0, 3.0), score("a", 1, 2.0)]
    assert table(scores).values["physics"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_failed_score_is_nan_and_counted_never_zero() -> None:
    """A zero would teach the policy that a video is bad because a judge was down."""
    scores = [score("a", 0, 1.0), score("a", 1, None), score("b", 0, 3.0), score("b", 1, 4.0)]
    result = table(scores)
    assert math.isnan(float(result.values["physics"][0, 1]))
    assert result.num_missing == {"physics": 1}


def test_a_score_that_never_came_is_missing_too() -> None:
    assert table([score("a", 0, 1.0)]).num_missing == {"physics": 3}


def test_too_many_missing_scores_stop_with_scorer_share_and_first_error() -> None:
    scores = [score("a", 0, 1.0), score("a", 1, None), score("b", 0, 3.0), score("b", 1, 4.0)]
    with pytest.raises(MissingScoresError, match=r"'physics'.*1 of 4.*25%.*OSError: no disk"):
        table(scores, max_missing_frac=0.2)


def test_a_share_at_the_limit_is_let_through() -> None:
    scores = [score("a", 0, 1.0), score("a", 1, None), score("b", 0, 3.0), score("b", 1, 4.0)]
    assert table(scores, max_missing_frac=0.25).num_missing == {"physics": 1}


def test_two_scores_for_one_rollout_are_refused() -> None:
    """Exactly-once: a late answer that slipped through must not overwrite the first in silence."""
    with pytest.raises(ValueError, match="given twice"):
        table([score("a", 0, 1.0), score("a", 0, 2.0)])
