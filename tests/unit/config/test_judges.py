"""Evaluation needs an opinion that training could not have bent."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.config import EvaluateConfig, Recipe


@pytest.mark.parametrize(
    "judges", [[], [{"use": "physics"}], [{"use": "physics", "name": "independent"}]]
)
def test_trained_scorer_is_no_judge_under_any_name(judges: list[dict[str, Any]]) -> None:
    """A score that rises because it was trained on says nothing new."""
    tree = {
        "name": "a",
        "rewards": {"scorers": [{"use": "physics"}]},
        "evaluate": {"judges": judges},
    }
    with pytest.raises(ValueError, match="at least one scorer that did not train"):
        Recipe.model_validate(tree)


def test_untrained_judge_is_enough() -> None:
    """One such judge may stand beside trained scorers."""
    tree = {
        "name": "a",
        "rewards": {"scorers": [{"use": "physics"}, {"use": "realism", "weight": 0.0}]},
        "evaluate": {"judges": [{"use": "physics"}, {"use": "realism"}]},
    }
    assert Recipe.model_validate(tree).evaluate.judges[1].use == "realism"


@pytest.mark.parametrize("grpo", [{"evaluate_every": 0}, {"evaluate_prompts": 1}])
def test_early_stop_needs_a_judge_that_is_asked(grpo: dict[str, Any]) -> None:
    """It would never stop, and nobody would know."""
    tree = {"name": "a", "grpo": {"early_stop": {"judge_falls": True}, **grpo}}
    with pytest.raises(ValueError, match=r"grpo\.early_stop\.judge_falls watches a judge"):
        Recipe.model_validate(tree)


@pytest.mark.parametrize(
    "judge",
    [
        {"use": "realism", "name": "critic"},
        {"use": "physics", "name": "critic", "config": {"threshold": 0.5}},
        {"use": "physics", "name": "critic", "deadline_s": 5.0},
    ],
)
def test_judge_under_the_name_of_another_scorer_is_refused(judge: dict[str, Any]) -> None:
    """The trained scorer would be taken for the judge, and its rise for an independent opinion."""
    judges = [judge, {"use": "attribute_judge"}]
    tree = {
        "name": "a",
        "rewards": {"scorers": [{"use": "physics", "name": "critic"}]},
        "evaluate": {"judges": judges},
    }
    with pytest.raises(ValueError, match="'critic' is also .* with other settings, which would be"):
        Recipe.model_validate(tree)


@pytest.mark.parametrize(
    ("judges", "message"),
    [
        ([{"use": "judge"}, {"use": "vlm", "name": "judge"}], "'judge' appears twice"),
        (
            [{"use": "judge", "weight": 3.0}],
            r"judges\.judge\.weight: a judge scores without .*got 3",
        ),
    ],
)
def test_judges_have_names_of_their_own_and_no_weight(
    judges: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig.model_validate({"judges": judges})
    EvaluateConfig.model_validate({"judges": [{"use": "judge", "weight": 0.0}]})
