"""The table of the paired evaluation, from measurements made by hand."""

from __future__ import annotations

import pytest

from rlvid.config import Recipe
from rlvid.launch.heldout import independent_judges, with_judges
from rlvid.launch.phases.evaluate import compare
from tests.unit.launch.hand_made import measurement, recipe

TEXTS = ("a", "b", "c")
PAIRS = [(text, index) for text in TEXTS for index in (0, 1)]


def _recipe(*judges: str) -> Recipe:
    return with_judges(
        recipe(
            rewards={"scorers": [{"use": "adherence", "weight": 2.0}]},
            evaluate={"judges": [{"use": judge} for judge in judges], "num_bootstrap": 100},
        )
    )


def test_judges_join_the_pool_without_weight() -> None:
    """A judge's number next to the reward is worth something only if nothing trained on it."""
    scorers = _recipe("attribute_judge").rewards.scorers
    assert [(scorer.label, scorer.weight) for scorer in scorers] == [
        ("adherence", 2.0),
        ("attribute_judge", 0.0),
    ]


def test_judge_that_trains_keeps_its_place_and_weight() -> None:
    scorers = _recipe("adherence", "attribute_judge").rewards.scorers
    assert [scorer.label for scorer in scorers] == ["adherence", "attribute_judge"]
    assert scorers[0].weight == 2.0


def test_trained_scorer_under_another_name_is_no_independent_judge() -> None:
    """Its fall or rise says nothing that the reward does not say."""
    made = recipe(
        rewards={"scorers": [{"use": "adherence"}, {"use": "realism", "weight": 0.0}]},
        evaluate={
            "judges": [{"use": "adherence", "name": "own"}, {"use": "realism"}, {"use": "physics"}]
        },
    )
    assert independent_judges(made) == ("realism", "physics")


def test_table_has_differences_of_pairs_and_says_what_was_trained_on() -> None:
    lower = {pair: 0.25 for pair in PAIRS}
    higher = {pair: 0.75 for pair in PAIRS}
    before = measurement(TEXTS, reward=lower, adherence=lower, attribute_judge=higher)
    after = measurement(TEXTS, reward=higher, adherence=higher, attribute_judge=lower)
    reward, adherence, judge = compare(_recipe("attribute_judge"), before, after)
    assert [row.name for row in (reward, adherence, judge)] == [
        "reward", "adherence", "attribute_judge",
    ]  # fmt: skip
    assert [row.trained for row in (reward, adherence, judge)] == [True, True, False]
    assert (reward.before, reward.after, reward.difference) == (0.25, 0.75, 0.5)
    assert (reward.win_rate, judge.win_rate) == (1.0, 0.0)
    assert (judge.difference, judge.low, judge.high) == (-0.5, -0.5, -0.5)
    assert (reward.num_pairs, reward.num_missing) == (6, 0)


def test_pair_without_a_score_from_either_policy_is_left_out_and_counted() -> None:
    """One score is gone before, one after, and a whole prompt from both: 4 of 6 pairs."""
    full = {pair: 0.5 for pair in PAIRS}
    first = {pair: 0.0 for pair in PAIRS if pair != ("a", 0) and pair[0] != "c"}
    second = {pair: 1.0 for pair in PAIRS if pair != ("b", 1) and pair[0] != "c"}
    before = measurement(TEXTS, reward=full, adherence=first, attribute_judge=full)
    after = measurement(TEXTS, reward=full, adherence=second, attribute_judge=full)
    reward, adherence, _ = compare(_recipe("attribute_judge"), before, after)
    assert (adherence.num_pairs, adherence.num_missing) == (2, 4)
    assert adherence.difference == 1.0
    assert reward.num_missing == 0


def test_scorer_that_never_answered_for_both_is_an_error() -> None:
    full = {pair: 0.5 for pair in PAIRS}
    before = measurement(TEXTS, reward=full, adherence=full, attribute_judge={("a", 0): 1.0})
    after = measurement(TEXTS, reward=full, adherence=full, attribute_judge={("a", 1): 1.0})
    with pytest.raises(ValueError, match="'attribute_judge' gave no score for both policies"):
        compare(_recipe("attribute_judge"), before, after)
