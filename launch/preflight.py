"""Checks a recipe against the files and plugins it names, before any process starts."""

from __future__ import annotations

from rlvid.algorithms import ALGORITHMS
from rlvid.config import Recipe
from rlvid.data.prompts import load_prompts
from rlvid.launch.heldout import heldout_prompts
from rlvid.models import MODELS, model_folder
from rlvid.plugins import resolve
from rlvid.rewards.registry import open_scorer


def preflight(recipe: Recipe) -> None:
    """Find what would fail minutes later on some actor.

    Raises:
        ValueError: names the recipe's path, the value and the way out.
    """
    resolve(recipe.algorithm.use, ALGORITHMS, where="algorithm.use")
    resolve(recipe.model.use, MODELS, where="model.use")
    if recipe.phases[0] != "tiny_base":
        _check_model_folder(recipe)
    uses_rewards = {"grpo", "evaluate"} & set(recipe.phases)
    if not uses_rewards:
        return
    for position, scorer in enumerate(recipe.rewards.scorers):
        open_scorer(scorer, f"rewards.scorers.{position}")
    load_prompts(recipe.prompts)
    if "evaluate" in recipe.phases or recipe.grpo.evaluate_every:
        heldout_prompts(recipe, 1)
    if "evaluate" in recipe.phases:
        for position, judge in enumerate(recipe.evaluate.judges):
            open_scorer(judge, f"evaluate.judges.{position}")


def _check_model_folder(recipe: Recipe) -> None:
    folder = model_folder(recipe.model)
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"model.path: no pipeline at {str(folder)!r}: expected a folder with model_index.json, "
            "as diffusers' save_pretrained writes it. Give such a folder, or 'tiny'."
        )
