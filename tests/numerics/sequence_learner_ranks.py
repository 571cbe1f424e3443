"""Run as one rank by test_sequence_parallel: FOLDER SEQUENCE_PARALLEL STAGE... Not a test itself.

STAGE is of ZeRO; at stage 0, where gradients are whole, they are kept.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlvid.learners import zero_engine
from rlvid.learners.rl import RlLearner
from rlvid.learners.sft import SftLearner, sft_settings
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.models.policy import Policy
from rlvid.records import RolloutGroup
from rlvid.testing import tiny_model
from tests.numerics.layout_ranks import capture

CLIP = {"num_frames": 9, "height": 32, "width": 32}
"""48 tokens."""
NAMES = (
    *("learner/grad_norm/total", "learner/loss/mean", "learner/kl/mean", "learner/rows/count"),
    *("learner/forward_rows/count", "learner/replay_drift/max"),
)


def section(stage: int, sequence_parallel: int) -> dict[str, Any]:
    return {
        "num_ranks": int(os.environ["WORLD_SIZE"]),
        "sequence_parallel": sequence_parallel,
        "zero_stage": stage,
        "mode": "full",
        "max_grad_norm": 1e9,
        "activation_checkpointing": True,
    }


def rl(stage: int, sequence_parallel: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Take two updates on two groups that one rank sampled, against a copy of the policy.

    The policy in training then samples them again; how far off its videos are is measured too.
    """
    recipe = tiny_recipe(
        model=CLIP,
        learner=section(stage, sequence_parallel),
        rollout={"guidance_scale": 3.0},
        algorithm={
            "clip_range": 0.1,
            "updates_per_batch": 2,
            "kl": {"kind": "reference", "coefficient": 0.1},
        },
    )
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    learner.publish(0)
    digest = learner.published_digest(0)
    groups = tiny_groups(tiny_model(0), recipe, digest=digest, num_groups=2)
    again = tiny_groups(learner.trainee.model, recipe, digest=digest, num_groups=2)
    noted = capture(learner.trainee, goes_on=True)
    report = learner.train(groups, tiny_rewards(groups), step=0)
    metrics = {name: report.metrics[name] for name in NAMES}
    return metrics | {"sampled_off": farthest(groups, again)}, noted


def farthest(groups: dict[str, RolloutGroup], others: dict[str, RolloutGroup]) -> float:
    """Return the largest difference between the groups' final latents."""
    return max(
        float((rollout.latents - other.latents).abs().max())
        for name, group in groups.items()
        for rollout, other in zip(group.rollouts, others[name].rollouts, strict=True)
    )


def sft(sequence_parallel: int, folder: Path) -> dict[str, Tensor]:
    """Return the gradient of a batch of three clips: an odd number of rows."""
    sft = {"batch_size": 3, "num_clips": 4, "learner": section(0, sequence_parallel)}
    recipe = tiny_recipe(model=CLIP, sft=sft)
    learner = SftLearner(sft_settings(recipe, Policy(model_path="tiny"), folder), tiny_model(0))
    noted = capture(learner.trainee, goes_on=True)
    learner.train_steps(0, 1)
    return noted


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Tiny parameters would all stay whole at stage 3; sharding them is what is tested.
    zero_engine.PERSISTENT_ELEMENTS = 0
    place, size = Path(sys.argv[1]), int(sys.argv[2])
    world = os.environ["WORLD_SIZE"]
    metrics: dict[str, dict[str, float]] = {}
    kept: dict[str, Tensor] = {}
    for stage in sys.argv[3:]:
        metrics[stage], noted = rl(int(stage), size)
        kept |= {f"rl/{name}": value for name, value in noted.items() if stage == "0"}
    kept |= {f"sft/{n}": v for n, v in sft(size, place / f"clips-{world}").items()}
    if torch.distributed.get_rank() == 0:
        (place / f"learner-{world}.json").write_text(json.dumps(metrics))
        save_file(kept, place / f"learner-{world}.safetensors")
    torch.distributed.barrier()
    # Interpreter exit sometimes aborts in gloo's threads ("terminate called without ...").
    os._exit(0)
