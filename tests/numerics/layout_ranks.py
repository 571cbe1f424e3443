"""Run as one rank by test_layout_invariance: LAYOUT FOLDER. Not a test itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlvid.learners.rl import RlLearner
from rlvid.learners.sft import SftLearner, sft_settings
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.learners.trainee import Trainee
from rlvid.models.policy import Policy
from rlvid.testing import tiny_model
from rlvid.weights import trainable_parameters
from tests.unit.learners.forward_learner import ENGINES, forward_recipe

MICRO_BATCH_ROWS = {"whole": 8, "split": 4, "ranks": 8}


def gradients(trainee: Trainee) -> dict[str, Tensor]:
    """Return the gradient of the step that would follow, summed over ranks (stage 0)."""
    live = trainable_parameters(trainee.engine.transformer, trainee.settings.learner.mode)
    return {name: p.grad.clone() for name, p in live.items() if p.grad is not None}


def capture(trainee: Trainee, *, goes_on: bool = False) -> dict[str, Tensor]:
    """Make the trainee note the gradient of its first step, and step on it only if it `goes_on`."""
    noted: dict[str, Tensor] = {}
    step = trainee.step

    def note(*, divisor: float = 1.0) -> float:
        if not noted:
            noted.update({name: value / divisor for name, value in gradients(trainee).items()})
        return step(divisor=divisor) if goes_on else 0.0

    trainee.step = note  # type: ignore[method-assign]
    return noted


def rl(micro_batch_rows: int) -> dict[str, Tensor]:
    """Two groups of 4 rollouts, 8 rows."""
    learner_section = {
        "mode": "full",
        "zero_stage": 0,
        "micro_batch_rows": min(micro_batch_rows, 4),
    }
    recipe = tiny_recipe(
        learner=learner_section,
        rollout={"initial_noise": "independent"},
        algorithm={"clip_range": 0.1},
    )
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    learner.publish(0)
    groups = tiny_groups(tiny_model(0), recipe, digest=learner.published_digest(0), num_groups=2)
    noted = capture(learner.trainee)
    learner.train(groups, tiny_rewards(groups), step=0)
    return noted


def forward(engine: str, micro_batch_rows: int) -> dict[str, Tensor]:
    """Two groups of 4 final videos at two noise levels, 16 rows; dpo takes both pairs of each."""
    recipe = forward_recipe(
        engine,
        learner={"mode": "full", "zero_stage": 0, "micro_batch_rows": micro_batch_rows},
        algorithm={"dpo": {"max_pairs": None}} if engine == "dpo" else {},
    )
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    learner.publish(0)
    groups = tiny_groups(tiny_model(0), recipe, digest=learner.published_digest(0), num_groups=2)
    noted = capture(learner.trainee)
    learner.train(groups, tiny_rewards(groups), step=0)
    return noted


def sft(micro_batch_rows: int, folder: Path) -> dict[str, Tensor]:
    """A batch of 8 clips."""
    learner_section = {"mode": "full", "zero_stage": 0, "micro_batch_rows": micro_batch_rows}
    recipe = tiny_recipe(sft={"batch_size": 8, "num_clips": 10, "learner": learner_section})
    learner = SftLearner(sft_settings(recipe, Policy(model_path="tiny"), folder), tiny_model(0))
    noted = capture(learner.trainee)
    learner.train_steps(0, 1)
    return noted


if __name__ == "__main__":
    torch.set_num_threads(1)
    layout, place = sys.argv[1], Path(sys.argv[2])
    rows = MICRO_BATCH_ROWS[layout]
    found = {f"sft/{name}": value for name, value in sft(rows, place / layout).items()}
    # A group is never cut between ranks: "split" cuts each group's forward in two instead.
    found |= {f"rl/{n}": v for n, v in rl(2 if layout == "split" else 4).items()}
    for engine in ENGINES:
        found |= {f"{engine}/{n}": v for n, v in forward(engine, rows).items()}
    if torch.distributed.get_rank() == 0:
        save_file(found, place / f"{layout}.safetensors")
    torch.distributed.barrier()
    # Interpreter exit sometimes aborts in gloo's threads ("terminate called without ...").
    os._exit(0)
