"""Evaluation needs an opinion that training could not have bent."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.config import Recipe


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


def test_judge_under_the_name_of_a_scorer_is_refused() -> None:
    """The trained scorer would be taken for the judge, and its rise for an independent opinion."""
    tree = {
        "name": "a",
        "rewards": {"scorers": [{"use": "physics", "name": "critic"}]},
        "evaluate": {"judges": [{"use": "realism", "name": "critic"}]},
    }
    with pytest.raises(ValueError, match="'critic' is also the name of scorer 'physics'"):
        Recipe.model_validate(tree)
