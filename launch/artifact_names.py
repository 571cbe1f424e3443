"""Names in a recipe that stand for what an earlier phase of the run made: `artifact:<name>`.

A scorer's setting, or that of refl's reward, may name a reward model that the same run trains, and
`sft.clips`, `dpo.pairs`, `algorithm.data_loss.clips` or the clips of distillation a data set that
it makes; the name becomes its folder when a phase starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from rlvid.config import AlgorithmConfig, Recipe, ScorerConfig
from rlvid.config.algorithm import DifferentiableRewardConfig
from rlvid.config.distillation import ClipsConfig, DistillationConfig

Clips = TypeVar("Clips", bound=ClipsConfig)

PREFIX = "artifact:"
TINY_WORLD = "tiny_world"
"""Stands for clips that are rendered; no folder."""
ARTIFACT = "artifact"
"""Of `evaluate.enhance`: a run trains one enhancer at most, so it needs no name."""


def names_artifact(scorer: ScorerConfig | DifferentiableRewardConfig) -> str | None:
    """Return the artifact that a scorer's settings name, None when they name none."""
    for value in scorer.config.values():
        if isinstance(value, str) and value.startswith(PREFIX):
            return value.removeprefix(PREFIX)
    return None


def with_artifacts(
    recipe: Recipe,
    folders: Mapping[str, str],
    datasets: Mapping[str, str],
    enhancer: str | None = None,
) -> Recipe:
    """Return the recipe with the folders in place of the names known so far.

    A name that is not known yet stays: the phase that makes it may be the one to start, and
    opening the scorer says what is wrong with it otherwise.

    Args:
        folders: of reward models, by name.
        datasets: folders of data sets, by name.
        enhancer: folder of the prompt enhancer.
    """

    def found(scorer: ScorerConfig) -> ScorerConfig:
        return scorer.model_copy(update={"config": _settings_of(scorer, folders)})

    rewards = recipe.rewards.model_copy(
        update={"scorers": tuple(found(scorer) for scorer in recipe.rewards.scorers)}
    )
    evaluate = recipe.evaluate.model_copy(
        update={"judges": tuple(found(judge) for judge in recipe.evaluate.judges)}
    )
    if recipe.evaluate.enhance == ARTIFACT and enhancer is not None:
        evaluate = evaluate.model_copy(update={"enhance": enhancer})
    sft = recipe.sft.model_copy(update={"clips": _folder_of(recipe.sft.clips, datasets)})
    dpo = recipe.dpo.model_copy(update={"pairs": _folder_of(recipe.dpo.pairs, datasets)})
    return recipe.model_copy(
        update={
            "algorithm": _of_algorithm(recipe.algorithm, folders, datasets),
            "rewards": rewards,
            "evaluate": evaluate,
            "sft": sft,
            "dpo": dpo,
            "distillation": _of_distillation(recipe.distillation, datasets),
        }
    )


def _of_algorithm(
    algorithm: AlgorithmConfig, folders: Mapping[str, str], datasets: Mapping[str, str]
) -> AlgorithmConfig:
    data, refl = algorithm.data_loss, algorithm.refl
    reward = refl.reward.model_copy(update={"config": _settings_of(refl.reward, folders)})
    return algorithm.model_copy(
        update={
            "data_loss": data.model_copy(update={"clips": _folder_of(data.clips, datasets)}),
            "refl": refl.model_copy(update={"reward": reward}),
        }
    )


def _of_distillation(config: DistillationConfig, datasets: Mapping[str, str]) -> DistillationConfig:
    """Return the section with folders for the clips of causal teacher, consistency and GAN."""

    def found(clips: Clips) -> Clips:
        return clips.model_copy(update={"clips": _folder_of(clips.clips, datasets)})

    init, few_step, forcing = config.causal_init, config.few_step, config.self_forcing
    return config.model_copy(
        update={
            "causal_teacher": found(config.causal_teacher),
            "causal_init": init.model_copy(update={"consistency": found(init.consistency)}),
            "few_step": few_step.model_copy(update={"gan": found(few_step.gan)}),
            "self_forcing": forcing.model_copy(update={"gan": found(forcing.gan)}),
        }
    )


def _settings_of(
    scorer: ScorerConfig | DifferentiableRewardConfig, folders: Mapping[str, str]
) -> dict[str, Any]:
    """Return a scorer's settings with the folder of a reward model that is known by now."""
    name = names_artifact(scorer)
    if name is None or name not in folders:
        return scorer.config
    return {
        key: folders[name] if value == f"{PREFIX}{name}" else value
        for key, value in scorer.config.items()
    }


def _folder_of(clips: str, datasets: Mapping[str, str]) -> str:
    """Return the folder of a data set that is named as an artifact; anything else as it is."""
    return datasets.get(clips.removeprefix(PREFIX), clips) if clips.startswith(PREFIX) else clips


def check_dataset(recipe: Recipe) -> None:
    """Refuse clips of a phase that trains that will not be there, or not with what it asks of them.

    Raises:
        ValueError: a data set that no phase before it makes, or makes without real clips or the
            scores asked for; or no folder where one is named.
    """
    if _check_clips(recipe, "sft", "sft.clips", recipe.sft.clips):
        _check_anchor(recipe)
    if _check_clips(recipe, "dpo", "dpo.pairs", recipe.dpo.pairs):
        _check_order(recipe)
    data = recipe.algorithm.data_loss
    if data.coefficient:
        _check_clips(recipe, "grpo", "algorithm.data_loss.clips", data.clips)
    for place, read in recipe.distillation.clean_clips.items():
        _check_clips(recipe, "distillation", f"distillation.{place}.clips", read.clips)


def _check_clips(recipe: Recipe, phase: str, where: str, clips: str) -> bool:
    """Return whether the clips are a data set that this run makes for the phase."""
    phases = recipe.phases
    if phase not in phases:
        return False
    if not clips.startswith(PREFIX):
        if clips != TINY_WORLD and not Path(clips).expanduser().is_dir():
            raise ValueError(
                f"{where}: no folder at {clips!r}; give one that is there, or a data set that an "
                f"earlier phase makes, as {PREFIX + recipe.data_engine.name!r}"
            )
        return False
    made = "data_engine" in phases[: phases.index(phase)]
    if not made or clips.removeprefix(PREFIX) != recipe.data_engine.name:
        raise ValueError(
            f"{where}: {clips!r} is made by no earlier phase; phase data_engine makes "
            f"{PREFIX + recipe.data_engine.name!r}. Put data_engine before {phase}, or give a "
            "folder"
        )
    return True


def _check_anchor(recipe: Recipe) -> None:
    if recipe.sft.anchor.beta and recipe.data_engine.real.source == "none":
        raise ValueError(
            f"sft.anchor.beta: needs real clips, got {recipe.sft.anchor.beta:g} with "
            "data_engine.real.source 'none'; set the source to tiny_world or videos, or beta to 0"
        )


def _check_order(recipe: Recipe) -> None:
    known = ["reward", *(scorer.label for scorer in recipe.rewards.scorers)]
    if recipe.dpo.by not in known:
        raise ValueError(
            f"dpo.by: the data set has no such score: expected one of {', '.join(known)}, got "
            f"{recipe.dpo.by!r}"
        )


def check_artifact(
    recipe: Recipe, scorer: ScorerConfig | DifferentiableRewardConfig, where: str
) -> bool:
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


def check_enhancer(recipe: Recipe) -> None:
    """Raise ValueError when `evaluate.enhance` names an enhancer that is not there in time."""
    enhance, phases = recipe.evaluate.enhance, recipe.phases
    if "evaluate" not in phases or enhance == "none":
        return
    before = phases[: phases.index("evaluate")]
    if enhance == ARTIFACT and "prompt_enhancement" not in before:
        raise ValueError(
            "evaluate.enhance: 'artifact' is made by no earlier phase; put prompt_enhancement "
            "before evaluate, or give the folder of an enhancer"
        )
    if enhance != ARTIFACT and not (Path(enhance).expanduser() / "enhancer.json").is_file():
        raise ValueError(
            f"evaluate.enhance: no enhancer in {enhance!r}: expected 'none', 'artifact' or a "
            "folder that phase prompt_enhancement wrote"
        )
