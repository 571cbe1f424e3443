"""A recipe may name a reward model that the same run trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlvid.config import Recipe
from rlvid.launch.artifact_names import check_artifact, check_dataset, with_artifacts


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


def _grpo_on_artifacts(phases: list[str]) -> Recipe:
    reward = {"use": "trained_reward", "config": {"folder": "artifact:own"}}
    algorithm = {
        "use": "refl",
        "refl": {"reward": reward},
        "data_loss": {"coefficient": 1.0, "clips": "artifact:clips"},
    }
    return Recipe.model_validate(
        {
            "name": "x",
            "phases": phases,
            "algorithm": algorithm,
            "data_engine": {"name": "clips"},
            "reward_model": {"name": "own"},
        }
    )


def test_what_refl_follows_and_the_clips_beside_are_named_as_well() -> None:
    recipe = _grpo_on_artifacts(["data_engine", "reward_model", "grpo"])
    check_dataset(recipe)
    assert check_artifact(recipe, recipe.algorithm.refl.reward, "algorithm.refl.reward")
    algorithm = with_artifacts(recipe, {"own": "/run/own"}, {"clips": "/run/clips"}).algorithm
    assert algorithm.refl.reward.config == {"folder": "/run/own"}
    assert algorithm.data_loss.clips == "/run/clips"


def test_clips_of_every_stage_of_distillation_become_their_folder() -> None:
    clips = {"clips": "artifact:clips"}
    own = {
        "causal_teacher": clips,
        "causal_init": {"consistency": clips},
        "few_step": {"gan": clips},
        "self_forcing": {"gan": clips},
    }
    recipe = _recipe(["data_engine", "reward_model", "distillation"], distillation=own)
    found = with_artifacts(recipe, {}, {"clips": "/run/clips"}).distillation
    few_step, forcing = found.few_step.gan, found.self_forcing.gan
    for section in (found.causal_teacher, found.causal_init.consistency, few_step, forcing):
        assert section.clips == "/run/clips"


CLIPS: dict[str, Any] = {"clips": "artifact:clips"}
CONSISTENCY = {"method": "consistency", "consistency": CLIPS}


@pytest.mark.parametrize(
    ("sections", "place"),
    [
        ({"causal_teacher": CLIPS}, "causal_teacher"),
        ({"causal_init": CONSISTENCY}, "causal_init.consistency"),
        ({"self_forcing": {"gan": {**CLIPS, "weight": 0.1}}}, "self_forcing.gan"),
        ({"stages": ["few_step"], "few_step": {"gan": {**CLIPS, "weight": 0.1}}}, "few_step.gan"),
    ],
)
def test_clips_of_distillation_must_be_made_before_it(sections: dict[str, Any], place: str) -> None:
    phases = ["reward_model", "distillation", "data_engine"]
    late = _recipe(phases, distillation=sections, data_engine={"name": "clips"})
    message = rf"^distillation\.{place}\.clips: 'artifact:clips' is made by no .* before distill"
    with pytest.raises(ValueError, match=message):
        check_dataset(late)
    check_dataset(late.model_copy(update={"phases": ("data_engine", "distillation")}))
    other = late.data_engine.model_copy(update={"name": "others"})
    phases_right = {"phases": ("data_engine", "distillation"), "data_engine": other}
    with pytest.raises(ValueError, match="makes 'artifact:others'"):
        check_dataset(late.model_copy(update=phases_right))


@pytest.mark.parametrize(
    "sections",
    [
        {"causal_init": {"consistency": CLIPS}},
        {"self_forcing": {"gan": CLIPS}},
        {"few_step": {"gan": {**CLIPS, "weight": 0.1}}},
    ],
)
def test_clips_that_no_stage_reads_are_not_asked_for(sections: dict[str, Any]) -> None:
    """By ode, without a GAN term, or of a stage that is not run."""
    check_dataset(_recipe(["distillation"], distillation=sections))


def test_clips_beside_grpo_must_be_made_before_it() -> None:
    with pytest.raises(ValueError, match=r"algorithm.data_loss.clips: .* Put data_engine before"):
        check_dataset(_grpo_on_artifacts(["reward_model", "grpo"]))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            {"sft": {"anchor": {"beta": 1.0}}, "data_engine": {"real": {"source": "none"}}},
            r"^sft\.anchor\.beta: needs real clips, got 1 with data_engine\.real\.source 'none'",
        ),
        (
            {"dpo": {"by": "phisics"}},
            r"^dpo\.by: .* expected one of reward, physics, got 'phisics'",
        ),
    ],
)
def test_data_set_without_what_a_phase_asks_of_it_is_refused(
    sections: dict[str, Any], expected: str
) -> None:
    """The phase that makes it takes hours, and the one that reads it would find out."""
    sets = {"sft": {"clips": "artifact:dataset"}, "dpo": {"pairs": "artifact:dataset"}}
    merged = {key: {**sets.get(key, {}), **value} for key, value in {**sets, **sections}.items()}
    asking = Recipe.model_validate(
        {
            "name": "x",
            "phases": ["data_engine", "sft", "dpo"],
            "rewards": {"scorers": [{"use": "physics"}]},
            **merged,
        }
    )
    with pytest.raises(ValueError, match=expected):
        check_dataset(asking)


def test_home_of_the_user_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Recipes that ship keep their clips below it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clips").mkdir()
    check_dataset(
        Recipe.model_validate({"name": "x", "phases": ["sft"], "sft": {"clips": "~/clips"}})
    )
