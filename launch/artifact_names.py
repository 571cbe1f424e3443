"""Names in a recipe that stand for what an earlier phase of the run made: `artifact:<name>`.

A scorer's setting may name a reward model that the same run trains, and `sft.clips` a data set that
it makes; the name becomes its folder when a phase starts.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlvid.config import Recipe, ScorerConfig

PREFIX = "artifact:"


def names_artifact(scorer: ScorerConfig) -> str | None:
    """Return the artifact that a scorer's settings name, None when they name none."""
    for value in scorer.config.values():
        if isinstance(value, str) and value.startswith(PREFIX):
            return value.removeprefix(PREFIX)
    return None


def with_artifacts(
    recipe: Recipe, folders: Mapping[str, str], datasets: Mapping[str, str]
) -> Recipe:
    """Return the recipe with the folders in place of the names known so far.

    A name that is not known yet stays: the phase that makes it may be the one to start, and
    opening the scorer says what is wrong with it otherwise.

    Args:
        folders: of reward models, by name.
        datasets: folders of data sets, by name.
    """

    def found(scorer: ScorerConfig) -> ScorerConfig:
        name = names_artifact(scorer)
        if name is None or name not in folders:
            return scorer
        settings = {
            key: folders[name] if value == f"{PREFIX}{name}" else value
            for key, value in scorer.config.items()
        }
        return scorer.model_copy(update={"config": settings})

    rewards = recipe.rewards.model_copy(
        update={"scorers": tuple(found(scorer) for scorer in recipe.rewards.scorers)}
    )
    evaluate = recipe.evaluate.model_copy(
        update={"judges": tuple(found(judge) for judge in recipe.evaluate.judges)}
    )
    name = recipe.sft.clips.removeprefix(PREFIX)
    sft = recipe.sft
    if sft.clips.startswith(PREFIX) and name in datasets:
        sft = sft.model_copy(update={"clips": datasets[name]})
    return recipe.model_copy(update={"rewards": rewards, "evaluate": evaluate, "sft": sft})


def check_dataset(recipe: Recipe) -> None:
    """Raise ValueError when phase sft names a data set that no phase before it makes."""
    clips, phases = recipe.sft.clips, recipe.phases
    if "sft" not in phases or not clips.startswith(PREFIX):
        return
    made = "data_engine" in phases[: phases.index("sft")]
    if not made or clips.removeprefix(PREFIX) != recipe.data_engine.name:
        raise ValueError(
            f"sft.clips: {clips!r} is made by no earlier phase; phase data_engine makes "
            f"{PREFIX + recipe.data_engine.name!r}. Put data_engine before sft, or give a folder"
        )


def check_artifact(recipe: Recipe, scorer: ScorerConfig, where: str) -> bool:
    """Return whether the scorer waits for an artifact of this run, so it cannot be opened yet.

    Raises:
        ValueError: no earlier phase makes it.
    """
    name = names_artifact(scorer)
    if name is None:
        return False
    asking = [p for p in ("grpo", "evaluate") if p in recipe.phases]
    made = "reward_model" in recipe.phases and name == recipe.reward_model.name
    if not made or any(
        recipe.phases.index(p) < recipe.phases.index("reward_model") for p in asking
    ):
        makes = repr(PREFIX + recipe.reward_model.name)
        raise ValueError(
            f"{where}.config: {PREFIX + name!r} is made by no earlier phase; phase reward_model "
            f"makes {makes}. Put reward_model before the phases that score, or give a folder"
        )
    return True
