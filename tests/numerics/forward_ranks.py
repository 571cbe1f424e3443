"""Run as one rank by test_forward_chunks: FOLDER STAGE... Not a test itself."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rlvid.config import Recipe
from rlvid.learners import zero_engine
from rlvid.learners.dpo import DpoLearner, dpo_settings
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.models.policy import Policy
from rlvid.records import RolloutGroup
from rlvid.testing import tiny_model
from rlvid.weights import digest_tensors
from tests.numerics.chunk_ranks import train
from tests.unit.learners.clip_sets import dataset
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


@cache
def sampled_once(engine: str) -> dict[str, RolloutGroup]:
    """Groups of the untrained policy, which neither the stage nor the cut changes."""
    return tiny_groups(tiny_model(0), recipe_of(engine, 0), num_groups=3)


def outcome(engine: str, stage: int, cut: tuple[int, ...]) -> dict[str, Any]:
    """Train batches of the untrained policy's groups; all but refl drop one group of each."""
    recipe = recipe_of(engine, stage)
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    learner.publish(0)
    digest = learner.published_digest(0)
    groups = {n: replace(g, weights_digest=digest) for n, g in sampled_once(engine).items()}
    norms = []
    for number in range(NUM_BATCHES):
        rewards = tiny_rewards(groups, uniform=[f"000000-{number:02d}"])
        report = train(learner, groups, rewards, cut, step=number)
        norms.append(report.metrics["learner/grad_norm/total"])
    manifest, _ = learner.publish(1)
    return {
        "weights": digest_tensors(dict(learner.trainee.engine.full_parameters())),
        "published": [bucket.digest for bucket in manifest.buckets],
        "norms": norms,
    }


def stored(stage: int, folder: Path) -> dict[str, Any]:
    """Train two steps on three stored pairs, which two ranks share unevenly."""
    dpo = {
        "batch_size": 3,
        "pairs": str(dataset(folder, [[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])),
        "forward": {"num_noise_levels": 2},
        "learner": {"zero_stage": stage, "mode": "full", "micro_batch_rows": 3},
    }
    recipe = tiny_recipe(dpo=dpo)
    learner = DpoLearner(dpo_settings(recipe, Policy(model_path="tiny"), folder), tiny_model(0))
    reports = learner.train_steps(0, 2)
    return {
        name: [report.metrics[f"dpo/{name}"] for report in reports]
        for name in ("loss/mean", "implicit_margin/mean", "grad_norm/total")
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
    rank = torch.distributed.get_rank()
    world = torch.distributed.get_world_size()
    for stage in map(int, sys.argv[2:]):
        folder = Path(sys.argv[1]) / f"set-{world}-{stage}-{rank}"
        result[f"stored/{stage}"] = stored(stage, folder)
    if rank == 0:
        (Path(sys.argv[1]) / f"{world}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    # Interpreter exit sometimes aborts in gloo's threads ("terminate called without ...").
    os._exit(0)
