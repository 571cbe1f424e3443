"""Run as one rank by test_parameter_check: FOLDER. Not a test itself.

Rank 1 corrupts one element of what it holds; then each rank writes what the comparison says.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from rlvid.learners import zero_engine
from rlvid.learners.parameter_check import ParameterMismatchError
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.testing import tiny_model


def said(stage: int) -> dict[str, str]:
    """Return what the comparison says of a flipped bit, by itself and before a checkpoint."""
    recipe = tiny_recipe(
        learner={"zero_stage": stage, "mode": "full", "check_parameters_every": 1},
        grpo={"max_replay_drift_frac": 1e6},
    )
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    learner.publish(0)
    digest = learner.published_digest(0)
    groups = tiny_groups(tiny_model(0), recipe, digest=digest, num_groups=2)
    learner.train(groups, tiny_rewards(groups), step=0)
    found = {"corrupt": "", "save": ""}
    if learner.trainee.rank == 1:
        held = learner.trainee.engine.replicated_parameters()
        value = next(iter(held.values()))
        value.view(-1).view(torch.int32)[0] ^= 1
    for name, call in (("corrupt", learner.check_parameters), ("save", lambda: learner.save(here))):
        try:
            call()
        except ParameterMismatchError as error:
            found[name] = str(error)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    # At stage 3 only what is kept whole between steps can differ; the tiny model has both kinds.
    zero_engine.PERSISTENT_ELEMENTS = 200
    here = Path(sys.argv[1])
    result = {str(stage): said(stage) for stage in (0, 2, 3)}
    rank = torch.distributed.get_rank()
    (here / f"said-{rank}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    # Interpreter exit sometimes aborts in gloo's threads ("terminate called without ...").
    os._exit(0)
