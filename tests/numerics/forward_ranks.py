"""Run as one rank by test_forward_chunks: FOLDER STAGE... Not a test itself."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from rlvid.config import Recipe
from rlvid.learners import zero_engine
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_rewards, tiny_settings
from rlvid.testing import tiny_model
from rlvid.weights import digest_tensors
from tests.numerics.chunk_ranks import train
from tests.unit.learners.forward_learner import ENGINES, REWARD, forward_recipe

ON_VIDEOS = (*ENGINES, "refl")
"""Engines that look at final videos alone."""

CUTS = {"whole": (3,), "pieces": (2, 1)}
"""Chunks of a batch of three groups; on two ranks one of them fills up the last turn."""
NUM_BATCHES = 2


def recipe_of(engine: str, stage: int) -> Recipe:
    """Full parameters, an old policy that lags, a small norm, so that clipping acts."""
    behind: dict[str, Any] = {engine: {"old_policy": {"rate": 0.5}}}
    beside = {"data_loss": {"coefficient": 0.1, "batch_size": 3}}
    own: dict[str, dict[str, Any]] = {
        "dpo": beside,
        "refl": {"refl": {"reward": REWARD, "reference_weight": 0.1}},
    }
    return forward_recipe(
        engine,
        learner={
            "zero_stage": stage,
            "mode": "full",
            "max_grad_norm": 0.05,
            "optimizer": {"learning_rate": 1e-3},
            "micro_batch_rows": 3,
        },
        rollout={"max_staleness": NUM_BATCHES},
        algorithm=own.get(engine, behind),
    )


def outcome(engine: str, stage: int, cut: tuple[int, ...]) -> dict[str, Any]:
    """Train batches of the untrained policy's groups; all but refl drop one group of each."""
    recipe = recipe_of(engine, stage)
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    learner.publish(0)
    digest = learner.published_digest(0)
    norms = []
    for number in range(NUM_BATCHES):
        groups = tiny_groups(tiny_model(0), recipe, digest=digest, num_groups=3)
        rewards = tiny_rewards(groups, uniform=[f"000000-{number:02d}"])
        report = train(learner, groups, rewards, cut, step=number)
        norms.append(report.metrics["learner/grad_norm/total"])
    manifest, _ = learner.publish(1)
    return {
        "weights": digest_tensors(dict(learner.trainee.engine.full_parameters())),
        "published": [bucket.digest for bucket in manifest.buckets],
        "norms": norms,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Tiny parameters would all stay whole at stage 3; sharding them is what is tested.
    zero_engine.PERSISTENT_ELEMENTS = 0
    result = {
        f"{engine}/{stage}/{name}": outcome(engine, stage, cut)
        for engine in ON_VIDEOS
        for stage in map(int, sys.argv[2:])
        for name, cut in CUTS.items()
    }
    if torch.distributed.get_rank() == 0:
        number = torch.distributed.get_world_size()
        (Path(sys.argv[1]) / f"{number}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    # Interpreter exit sometimes aborts in gloo's threads ("terminate called without ...").
    os._exit(0)
