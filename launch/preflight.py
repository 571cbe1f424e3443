"""Checks a recipe against the files and plugins it names, before any process starts."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch

from rlvid.algorithms.opening import open_algorithm
from rlvid.config import ModelConfig, Recipe
from rlvid.data.prompts import load_prompts, load_text_prompts
from rlvid.flow.step_plans import make_step_plan
from rlvid.launch.artifact_names import check_artifact, check_dataset, check_enhancer
from rlvid.launch.data_engine.templates_file import load_templates
from rlvid.launch.enhancement.checks import check_enhancement
from rlvid.launch.groups import recipe_sigmas
from rlvid.launch.heldout import heldout_prompts, prompt_sets
from rlvid.launch.media_checks import check_phase_media, check_prompts_media
from rlvid.launch.model_size import count_trainable, trained_shapes
from rlvid.launch.sequence_checks import check_sequence_parallel
from rlvid.models import MODELS, model_folder
from rlvid.plugins import resolve
from rlvid.reward_models.differentiable import open_differentiable
from rlvid.rewards.registry import open_scorer


def preflight(recipe: Recipe) -> None:
    """Find what would fail minutes later on some actor.

    Raises:
        ValueError: names the recipe's path, the value and the way out.
    """
    open_algorithm(recipe.algorithm)
    resolve(recipe.model.use, MODELS, where="model.use")
    if recipe.phases[0] != "tiny_base":
        check_model_folder(recipe.model)
        recipe_sigmas(recipe, recipe.evaluate.num_denoising_steps)
        _check_store(recipe)
        check_sequence_parallel(recipe)
    _check_training(recipe)
    if "grpo" in recipe.phases:
        _check_refl(recipe)
        make_step_plan(
            recipe.rollout,
            recipe_seed=recipe.seed,
            prompt_id="preflight",
            step=0,
            sigmas=recipe_sigmas(recipe, recipe.rollout.num_denoising_steps),
        )
    check_phase_media(recipe)
    check_dataset(recipe)
    check_enhancer(recipe)
    if "data_engine" in recipe.phases:
        _check_data_engine(recipe)
    if "prompt_enhancement" in recipe.phases:
        check_enhancement(recipe)
    uses_rewards = {"grpo", "evaluate", "data_engine", "prompt_enhancement"} & set(recipe.phases)
    if not uses_rewards:
        return
    for position, scorer in enumerate(recipe.rewards.scorers):
        where = f"rewards.scorers.{position}"
        if not check_artifact(recipe, scorer, where):
            open_scorer(scorer, where)
    check_prompts_media(recipe, load_prompts(recipe.prompts), "prompts")
    if "evaluate" in recipe.phases or recipe.grpo.evaluate_every:
        num_heldout = len(heldout_prompts(recipe, 2))
        check_prompts_media(recipe, load_prompts(recipe.evaluate.prompts), "evaluate.prompts")
    if "evaluate" in recipe.phases:
        if num_heldout < 2:
            raise ValueError(
                "evaluate.prompts: an interval over prompts needs at least 2 held-out prompts, "
                f"got {num_heldout}; add some to {recipe.evaluate.prompts.source!r}"
            )
        if recipe.evaluate.stages is not None:
            prompt_sets(recipe)
        for position, judge in enumerate(recipe.evaluate.judges):
            where = f"evaluate.judges.{position}"
            if not check_artifact(recipe, judge, where):
                open_scorer(judge, where)


def _check_refl(recipe: Recipe) -> None:
    """Open the reward that refl follows, unless the run is still to train it."""
    reward = recipe.algorithm.refl.reward
    if recipe.algorithm.use == "refl" and not check_artifact(
        recipe, reward, "algorithm.refl.reward"
    ):
        open_differentiable(reward, device=torch.device("cpu"))


def _check_data_engine(recipe: Recipe) -> None:
    """Refuse names that the phase would look for in vain, and prompts it could not write."""
    engine = recipe.data_engine
    labels = [scorer.label for scorer in recipe.rewards.scorers]
    for position, given in enumerate(engine.weakness.given):
        if given.scorer not in labels:
            raise ValueError(
                f"data_engine.weakness.given.{position}.scorer: no scorer {given.scorer!r} in "
                f"rewards.scorers; there: {', '.join(labels)}"
            )
    server = engine.prompts.llm.server
    if engine.prompts.asks_llm:
        load_templates(engine.prompts.llm.templates)
        if server and server not in recipe.rewards.servers:
            raise ValueError(
                f"data_engine.prompts.llm.server: no server {server!r} in rewards.servers; there: "
                f"{', '.join(recipe.rewards.servers) or 'none'}"
            )
    load_text_prompts(engine.broad, who="data_engine.broad")
    for source in engine.real.intake.sources if engine.real.source == "videos" else ():
        if not Path(source).expanduser().exists():
            raise ValueError(
                f"data_engine.real.intake.sources: nothing at {source!r}. Give a folder or file "
                "that is there"
            )


def _check_training(recipe: Recipe) -> None:
    """Refuse what a training phase could not hand on at its end."""
    learners = {
        "sft": recipe.sft.learner,
        "dpo": recipe.dpo.learner,
        "grpo": recipe.learner,
        "distillation": recipe.distillation.learner,
    }
    trained = [learners[name] for name in recipe.phases if name in learners]
    modes = [
        "full" if name == "sft" and recipe.sft.balance == "adapters" else learners[name].mode
        for name in recipe.phases
        if name in learners
    ]
    if ("lora", "lora") in pairwise(modes):
        raise ValueError(
            "learner.mode: a LoRA on top of a LoRA cannot be exported as one adapter; "
            "train the earlier phase with mode full"
        )
    wants_ema = "evaluate" in recipe.phases and recipe.evaluate.use_ema
    if wants_ema and trained and trained[-1].ema is None:
        raise ValueError(
            "evaluate.use_ema: the last training phase keeps no averaged weights; "
            "set its learner.ema, or leave use_ema off"
        )
    for phase, config in (("sft", recipe.sft), ("dpo", recipe.dpo)):
        if phase in recipe.phases and config.ema_is_policy and config.learner.ema is None:
            raise ValueError(
                f"{phase}.ema_is_policy: there are no averaged weights to hand on; "
                f"set {phase}.learner.ema, or leave ema_is_policy off"
            )
    if "dpo" in recipe.phases and not recipe.dpo.pairs:
        raise ValueError(
            "dpo.pairs: phase dpo needs pairs: expected artifact:<data_engine.name>, the folder of "
            "a data set, or a folder with a pairs.jsonl, got ''"
        )


def _check_store(recipe: Recipe) -> None:
    """Refuse publishes that Ray's store could only spill to the disk, which takes minutes.

    Two are there while the actors go over from one to the next. Adapters are float32 on any base.
    """
    learner, cluster = recipe.learner, recipe.cluster
    is_ours = cluster.address is None and recipe.weights.transport != "shared_folder"
    if "grpo" not in recipe.phases or not is_ours:
        return
    width = 4 if learner.mode == "lora" or recipe.model.dtype == "float32" else 2
    num_trained = count_trainable(trained_shapes(recipe.model), learner)
    needed_mb = math.ceil(2 * num_trained * width / 2**20)
    if needed_mb > cluster.object_store_mb:
        raise ValueError(
            f"cluster.object_store_mb: two publishes of the weights need {needed_mb}, got "
            f"{cluster.object_store_mb}; raise it, with room for the groups besides, or set "
            "weights.transport=shared_folder"
        )


def check_model_folder(model: ModelConfig) -> None:
    """Raise ValueError unless `model.path` holds a pipeline."""
    folder = model_folder(model)
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"model.path: no pipeline at {str(folder)!r}: expected a folder with model_index.json, "
            "as diffusers' save_pretrained writes it. Give such a folder, or 'tiny'."
        )
