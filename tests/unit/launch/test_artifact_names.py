"""A recipe may name a reward model that the same run trains."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.config import Recipe
from rlvid.launch.artifact_names import check_artifact, with_artifacts


def _recipe(phases: list[str], name: str = "artifact:own", **more: Any) -> Recipe:
    scorer = {"use": "trained_reward", "config": {"folder": name, "part": "MQ"}}
    return Recipe.model_validate(
        {"name": "x", "phases": phases, "rewards": {"scorers": [scorer]}, **more}
    )


def test_known_name_becomes_its_folder_in_scorers_and_judges() -> None:
    judge = {"use": "trained_reward", "name": "second", "config": {"folder": "artifact:own"}}
    recipe = _recipe(["reward_model"], evaluate={"judges": [judge, {"use": "attribute_judge"}]})
    resolved = with_artifacts(recipe, {"own": "/run/own"}, {})
    assert resolved.rewards.scorers[0].config == {"folder": "/run/own", "part": "MQ"}
    assert resolved.evaluate.judges[0].config == {"folder": "/run/own"}
    assert with_artifacts(recipe, {"other": "/x"}, {}) == recipe


def test_scorer_waits_for_what_an_earlier_phase_makes() -> None:
    recipe = _recipe(["reward_model", "grpo"])
    assert check_artifact(recipe, recipe.rewards.scorers[0], "rewards.scorers.0")
    assert not check_artifact(recipe, recipe.evaluate.judges[0], "evaluate.judges.0")


@pytest.mark.parametrize(
    ("phases", "name"),
    [
        (["grpo"], "artifact:own"),
        (["grpo", "reward_model"], "artifact:own"),
        (["reward_model", "grpo"], "artifact:owm"),
    ],
)
def test_name_that_no_earlier_phase_makes_is_refused(phases: list[str], name: str) -> None:
    recipe = _recipe(phases, name)
    with pytest.raises(ValueError, match=r"rewards.scorers.0.config: .* by no earlier phase"):
        check_artifact(recipe, recipe.rewards.scorers[0], "rewards.scorers.0")
