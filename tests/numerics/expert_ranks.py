"""Run as one rank by test_expert_ranks: FOLDER STAGE... Not a test itself."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from rlvid.config import LearnerConfig
from rlvid.learners import zero_engine
from rlvid.learners.zero_engine import ZeroEngine
from rlvid.models.lora import add_lora
from rlvid.models.tiny_families.wan import tiny_experts

CAPTION = "a red ball falls to the left"
LEVELS = (0.9, 0.3, 0.2, 0.95, 0.95, 0.9)
"""Of the rows: dealt to two ranks in turn, high beside low twice, then both high."""
MODES = ("full", "lora")


def norms(mode: str, stage: int) -> list[float]:
    """Return the gradient norms of two steps over the same rows, each rank having its share."""
    config = LearnerConfig.model_validate(
        {
            "zero_stage": stage,
            "mode": mode,
            "lora": {"rank": 2, "alpha": 4.0},
            "optimizer": {"learning_rate": 1e-3},
        }
    )
    model = tiny_experts()
    if mode == "lora":
        add_lora(model.transformer, config.lora)
    engine = ZeroEngine(model.transformer, config, device=torch.device("cpu"))
    model.transformer = engine.module
    shape = model.latent_shape(9, 32, 32)
    noise = torch.randn(len(LEVELS), *shape, generator=torch.Generator().manual_seed(3))
    condition = model.encode_prompts([CAPTION])
    mine = range(engine.ranks.rank, len(LEVELS), engine.ranks.world_size)
    found = []
    for _ in range(2):
        for row in mine:
            sigma = torch.tensor([LEVELS[row]])
            with torch.no_grad():  # as a replay or a reference does before
                model.velocity(noise[row : row + 1], sigma, condition)
            velocity = model.velocity(noise[row : row + 1], sigma, condition)
            engine.backward(velocity.square().mean() / len(LEVELS), is_last=row == mine[-1])
        found.append(engine.step(1e-3))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Tiny parameters would all stay whole at stage 3; sharding them is what is tested.
    zero_engine.PERSISTENT_ELEMENTS = 0
    result = {
        f"{mode}/{stage}": norms(mode, stage) for mode in MODES for stage in map(int, sys.argv[2:])
    }
    if torch.distributed.get_rank() == 0:
        world = torch.distributed.get_world_size()
        (Path(sys.argv[1]) / f"{world}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    # Interpreter exit sometimes aborts in gloo's threads ("terminate called without ...").
    os._exit(0)
