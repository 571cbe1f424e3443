"""What a rank of prompt enhancement is opened with, for pairs and for rewards."""

from __future__ import annotations

from dataclasses import dataclass

from rlvid.config import Recipe
from rlvid.config.enhancement import PromptEnhancementConfig
from rlvid.learners.trainee import TraineeSettings
from rlvid.models.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class EnhancerSettings:
    """What a rank of the phase is opened with."""

    trainee: TraineeSettings
    """Its policy's `model_path` names the language model that training starts from, and is the
    reference of the KL: after a cold start the folder that this wrote."""
    enhancement: PromptEnhancementConfig


def cold_start_settings(recipe: Recipe) -> EnhancerSettings:
    """Cut a recipe down to what teaches by pairs."""
    config = recipe.prompt_enhancement
    learner = config.learner.model_copy(update={"optimizer": config.cold_start.optimizer})
    config = config.model_copy(update={"learner": learner})
    return _settings(recipe, config, config.rewriter.model, config.cold_start.num_steps)


def reward_settings(recipe: Recipe, start: str) -> EnhancerSettings:
    """Cut a recipe down to what learns from rewards.

    Args:
        start: the language model, a folder or "smollm2".
    """
    config = recipe.prompt_enhancement
    num_updates = config.num_steps * config.algorithm.num_updates
    return _settings(recipe, config, start, num_updates)


def _settings(
    recipe: Recipe, config: PromptEnhancementConfig, start: str, total_steps: int
) -> EnhancerSettings:
    trainee = TraineeSettings(
        policy=Policy(model_path=start),
        model=recipe.model,
        learner=config.learner,
        seed=recipe.seed,
        total_steps=total_steps,
        num_threads=recipe.cluster.threads_per_role,
    )
    return EnhancerSettings(trainee=trainee, enhancement=config)
