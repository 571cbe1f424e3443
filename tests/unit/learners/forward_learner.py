"""A learner of an engine on the forward process, its groups, and an actor's model."""

from __future__ import annotations

from typing import Any

from rlvid.config import Recipe
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_settings
from rlvid.models.base import VideoModel
from rlvid.models.lora import add_lora
from rlvid.records import RolloutGroup
from rlvid.testing import tiny_model
from rlvid.weights import apply_weights, digest_tensors

ENGINES = ("nft", "awm", "dpo")
REWARD = {"use": "video_text"}
ODE = {"guidance_scale": 1.0, "step_plan": {"kind": "ode"}, "initial_noise": "independent"}


def forward_recipe(engine: str, **sections: dict[str, Any]) -> Recipe:
    """Return a tiny recipe that samples without noise; refl judges by `REWARD`.

    Those that noise videos again draw two noise levels a video.
    """
    own = {"refl": {"reward": REWARD}} if engine == "refl" else {"forward": {"num_noise_levels": 2}}
    algorithm = {"use": engine, **own, **sections.pop("algorithm", {})}
    rollout = {**ODE, **sections.pop("rollout", {})}
    learner = {"optimizer": {"learning_rate": 1e-3}, **sections.pop("learner", {})}
    return tiny_recipe(algorithm=algorithm, rollout=rollout, learner=learner, **sections)


def open_forward(engine: str, **sections: dict[str, Any]) -> tuple[RlLearner, VideoModel, Recipe]:
    """Return a learner and an actor's model that took its first publish."""
    recipe = forward_recipe(engine, **sections)
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    actor = tiny_model(0)
    if recipe.learner.mode == "lora":
        add_lora(actor.transformer, recipe.learner.lora)
    take_publish(learner, actor, recipe, 0)
    return learner, actor, recipe


def take_publish(learner: RlLearner, actor: VideoModel, recipe: Recipe, version: int) -> str:
    """Publish a version to the actor's model; return the digest of what it then holds."""
    manifest, buckets = learner.publish(version)
    apply_weights(manifest, buckets, actor.transformer, mode=recipe.learner.mode)
    return manifest.digest


def sampled(
    learner: RlLearner, actor: VideoModel, recipe: Recipe, version: int = 0
) -> dict[str, RolloutGroup]:
    digest = learner.published_digest(version)
    return tiny_groups(actor, recipe, version=version, step=version, digest=digest)


def digest_of(learner: RlLearner) -> str:
    """Return the digest of the parameters in training."""
    return digest_tensors(dict(learner.trainee.engine.full_parameters()))
