"""Run as one rank by test_relayout: FOLDER LAYOUT READ WRITE. Not a test itself.

Goes on from checkpoint READ ("-": from the start), writes what it then holds as WRITE-again, takes
a step, and writes that as WRITE.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from rlvid.learners import zero_engine, zero_settings
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.testing import tiny_model
from rlvid.weights import digest_tensors
from tests.zero_layouts import learner_section


def save(learner: RlLearner, folder: Path) -> None:
    """Write a checkpoint, the digests of what is live, and the next random number."""
    if learner.trainee.rank == 0:
        folder.mkdir()
    learner.trainee.engine.ranks.barrier()
    learner.save(folder)
    assert learner.trainee.ema is not None
    digests = {
        "live": digest_tensors(dict(learner.trainee.engine.full_parameters())),
        "ema": digest_tensors(dict(learner.trainee.ema.full_parameters())),
    }
    draws = learner.trainee.engine.ranks.gather_json(float(torch.rand(())))
    if learner.trainee.rank == 0:
        (folder / "seen.json").write_text(json.dumps({**digests, "draws": draws}))


def step(learner: RlLearner, number: int) -> None:
    learner.publish(number)
    digest = learner.published_digest(number)
    recipe = tiny_recipe()
    groups = tiny_groups(
        tiny_model(0), recipe, version=number, step=number, digest=digest, num_groups=2
    )
    learner.train(groups, tiny_rewards(groups), step=number)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Tiny parameters would all stay whole at stage 3; both kinds are to be there.
    zero_engine.PERSISTENT_ELEMENTS = 200
    zero_settings.STEP_ELEMENTS = 5000  # or they would all be one group
    place, layout, read, write = Path(sys.argv[1]), *sys.argv[2:5]
    recipe = tiny_recipe(
        learner={
            **learner_section(layout),
            "mode": "full",
            "optimizer": {"learning_rate": 1e-3},
            "ema": {"decay": 0.5, "every": 1},
        },
        grpo={"max_replay_drift_frac": 1e6},
        algorithm={
            "clip_range": 0.1,
            "kl": {"kind": "moving_anchor", "coefficient": 0.1, "anchor_every": 2},
        },
    )
    torch.manual_seed(5)
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    if read != "-":
        learner.load(place / read)
    save(learner, place / f"{write}-again")
    step(learner, learner.trainee.optimizer_steps)
    save(learner, place / write)
    torch.distributed.barrier()
    # Interpreter exit sometimes aborts in gloo's threads ("terminate called without ...").
    os._exit(0)
