"""The section `evaluate.stages`: axes name scorers that are there, overall independent ones."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.config import Recipe
from rlvid.config.loader import load_recipe


def _recipe(stages: dict[str, Any] | None, **evaluate: Any) -> Recipe:
    judges = [{"use": "attribute_judge"}, {"use": "physics", "name": "laws"}]
    section = {"judges": judges, "stages": stages, **evaluate}
    return Recipe.model_validate({"name": "one", "evaluate": section})


def test_axes_take_scorers_and_judges() -> None:
    axes = {"VQ": ["realism"], "MQ": ["physics", "laws"], "overall": ["attribute_judge"]}
    stages = _recipe({"axes": axes}).evaluate.stages
    assert stages is not None
    assert stages.axes["MQ"] == ("physics", "laws")
    assert _recipe(None).evaluate.stages is None


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"VQ": ["beauty"]}, r"evaluate\.stages\.axes\.VQ: 'beauty' is no judge or scorer; there:"),
        ({"MQ": []}, r"evaluate\.stages\.axes\.MQ: expected labels of scorers or judges"),
        ({"style": ["realism"]}, "style"),
        # laws is physics under another name, and physics is trained on.
        ({"overall": ["laws"]}, r"axes\.overall: expected judges that did not train, got 'laws'"),
    ],
)
def test_axes_are_checked_when_the_recipe_is_read(axes: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _recipe({"axes": axes})


@pytest.mark.parametrize(("folder", "is_judge"), [("artifact:own", True), ("", False)])
def test_a_reward_model_judges_another_one_but_not_itself(folder: str, is_judge: bool) -> None:
    """Its weights make an opinion; another part of the same weights is none."""
    trained = {"use": "trained_reward", "config": {"folder": folder, "part": "VQ"}}
    recipe = {
        "name": "one",
        "phases": ["reward_model", "grpo", "evaluate"],
        "rewards": {"scorers": [trained]},
        "evaluate": {
            "judges": [{"use": "trained_reward", "name": "judged", "config": {"part": "MQ"}}],
            "stages": {"axes": {"overall": ["judged"]}},
        },
    }
    if is_judge:
        assert Recipe.model_validate(recipe).trained_opinions == {"trained_reward of artifact:own"}
    else:
        with pytest.raises(ValueError, match=r"that did not train, got \['trained_reward'\]"):
            Recipe.model_validate(recipe)


def test_an_axis_has_a_name_of_its_own() -> None:
    judges = [{"use": "attribute_judge", "name": "TA"}]
    with pytest.raises(ValueError, match="'TA' is also the name of a scorer"):
        _recipe({"axes": {"TA": ["TA"]}}, judges=judges)


def test_averages_are_no_stages() -> None:
    with pytest.raises(ValueError, match=r"evaluate\.use_ema: stages are what the phases handed"):
        _recipe({}, use_ema=True)


def test_the_shipped_recipe_has_the_whole_pipeline() -> None:
    recipe = load_recipe("post_train_tiny_cpu", ("evaluate.stages.tie_margin=0.2",))
    stages_in_order = ("sft", "grpo", "prompt_enhancement", "distillation", "evaluate")
    assert recipe.phases == ("reward_model", *stages_in_order)
    stages = recipe.evaluate.stages
    assert stages is not None
    assert stages.tie_margin == 0.2
    assert set(stages.axes) == {"VQ", "MQ", "TA", "overall"}
    # What is distilled is what was trained: the students have no guidance, nor has their teacher.
    scales = {stage.real_guidance_scale for stage in recipe.distillation.dmd_stages}
    assert scales == {recipe.rollout.guidance_scale} == {1.0}
