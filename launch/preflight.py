"""Checks a recipe against the files and plugins it names, before any process starts."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from rlvid.algorithms.opening import open_algorithm
from rlvid.config import ModelConfig, Recipe, ScorerConfig
from rlvid.config.rewards import unknown_server
from rlvid.data.prompts import load_prompts, load_text_prompts
from rlvid.flow.step_plans import make_step_plan
from rlvid.launch.artifact_names import check_artifact, check_dataset, check_enhancer
from rlvid.launch.clip_checks import check_clip
from rlvid.launch.data_engine.templates_file import load_templates
from rlvid.launch.enhancement.checks import check_enhancement
from rlvid.launch.groups import recipe_sigmas
from rlvid.launch.heldout import check_enough, heldout_prompts, prompt_sets
from rlvid.launch.loop.replay import check_earlier
from rlvid.launch.media_checks import check_phase_media, check_prompts_media
from rlvid.launch.model_size import count_trainable, trained_shapes
from rlvid.launch.sequence_checks import check_sequence_parallel
from rlvid.launch.training_checks import check_training
from rlvid.models import MODELS, model_folder
from rlvid.plugins import resolve
from rlvid.reward_models.differentiable import open_differentiable
from rlvid.rewards.base import UsesServer
from rlvid.rewards.registry import open_scorer
from rlvid.rewards.vllm.command import check_folder


def preflight(recipe: Recipe) -> None:
    """Find what would fail minutes later on some actor.

    Raises:
        ValueError: names the recipe's path, the value and the way out.
    """
    open_algorithm(recipe.algorithm)
    resolve(recipe.model.use, MODELS, where="model.use")
    if recipe.phases[0] != "tiny_base":
        check_model_folder(recipe.model)
        check_clip(recipe.model)
        recipe_sigmas(recipe, recipe.evaluate.num_denoising_steps)
        _check_store(recipe)
        check_sequence_parallel(recipe)
    check_training(recipe)
    if "grpo" in recipe.phases:
        _check_refl(recipe)
        check_earlier(recipe.grpo.replay)
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
    for name, server in recipe.rewards.servers.items():
        if not server.urls:
            check_folder(server, where=f"rewards.servers.{name}")
    for position, scorer in enumerate(recipe.rewards.scorers):
        _check_scorer(recipe, scorer, f"rewards.scorers.{position}")
    check_prompts_media(recipe, load_prompts(recipe.prompts), "prompts")
    if "evaluate" in recipe.phases or recipe.grpo.evaluate_every:
        _check_heldout(recipe)
    if "evaluate" in recipe.phases:
        for position, judge in enumerate(recipe.evaluate.judges):
            _check_scorer(recipe, judge, f"evaluate.judges.{position}")


def _check_heldout(recipe: Recipe) -> None:
    """Refuse held-out prompts that are trained on, or fewer than the evaluations ask for."""
    evaluate, grpo = recipe.evaluate, recipe.grpo
    num_heldout = len(heldout_prompts(recipe, 2))
    check_prompts_media(recipe, load_prompts(evaluate.prompts), "evaluate.prompts")
    if "evaluate" in recipe.phases:
        if num_heldout < 2:
            raise ValueError(
                "evaluate.prompts: an interval over prompts needs at least 2 held-out prompts, "
                f"got {num_heldout}; add some to {evaluate.prompts.source!r}"
            )
        check_enough(recipe, evaluate.num_prompts, "evaluate.num_prompts")
        if evaluate.stages is not None:
            prompt_sets(recipe)
    if "grpo" in recipe.phases and grpo.evaluate_every:
        check_enough(recipe, grpo.evaluate_prompts, "grpo.evaluate_prompts")


def _check_scorer(recipe: Recipe, scorer: ScorerConfig, where: str) -> None:
    """Open the scorer, unless the run is still to train it; hold its `server` against its class."""
    if check_artifact(recipe, scorer, where):
        return
    asks = isinstance(open_scorer(scorer, where), UsesServer)
    if asks and not scorer.server:
        raise ValueError(
            f"{where}.server: {scorer.label!r} asks a model server, got ''; name one of "
            "rewards.servers"
        )
    if scorer.server and not asks:
        raise ValueError(
            f"{where}.server: {scorer.label!r} asks no model server, got {scorer.server!r}; leave "
            "it out"
        )


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
            where = "data_engine.prompts.llm.server"
            raise ValueError(unknown_server(where, server, recipe.rewards.servers))
    broad = load_text_prompts(engine.broad, who="data_engine.broad")
    if not engine.weakness.given and engine.weakness.num_prompts > len(broad):
        raise ValueError(
            f"data_engine.weakness.num_prompts: data_engine.broad holds {len(broad)}, got "
            f"{engine.weakness.num_prompts}; lower it, or add prompts"
        )
    for source in engine.real.intake.sources if engine.real.source == "videos" else ():
        if not Path(source).expanduser().exists():
            raise ValueError(
                f"data_engine.real.intake.sources: nothing at {source!r}. Give a folder or file "
                "that is there"
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
