"""Run as one rank by the tests of ZeRO stages and of resume: JOB FOLDER. Not a test itself."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rlvid.config import Recipe
from rlvid.learners import checkpoint, zero_engine
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.testing import tiny_model
from rlvid.weights import digest_tensors
from tests.zero_layouts import learner_section

NUM_STEPS = 5
SAVED_AT = 2
LAYOUTS = ("0", "1", "2", "3", "2-offload", "3-offload")
CASES = [(layout, mode) for mode in ("lora", "full") for layout in LAYOUTS]
RESUMED = [("2", "lora"), ("3", "full")]
RESUMED_STEPS = 4


def recipe_of(layout: str, mode: str) -> Recipe:
    """Three groups on two ranks, so one rank pads; a small norm, so that clipping acts."""
    return tiny_recipe(
        learner={
            **learner_section(layout),
            "mode": mode,
            "num_ranks": 2,
            "max_grad_norm": 0.01,
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
            "ema": {"decay": 0.5, "every": 2},
        },
        grpo={"num_steps": NUM_STEPS, "max_replay_drift_frac": 1e6},
        algorithm={
            "clip_range": 0.1,
            "kl": {"kind": "moving_anchor", "coefficient": 0.1, "anchor_every": 2},
        },
    )


def open_learner(layout: str, mode: str, *, seed: int = 0) -> RlLearner:
    torch.manual_seed(seed)
    return RlLearner(tiny_settings(recipe_of(layout, mode)), tiny_model(0))


def train(learner: RlLearner, recipe: Recipe, first: int, last: int) -> list[float]:
    """Publish and take steps, drawing from the global generator as well.

    The groups are those of the untrained policy, whatever was published: then every run trains on
    the same numbers, and the ratios are not all 1.
    """
    draws = []
    for step in range(first, last):
        learner.publish(step)
        digest = learner.published_digest(step)
        groups = tiny_groups(tiny_model(0), recipe, version=step, step=step, digest=digest)
        learner.train(groups, tiny_rewards(groups, uniform=[f"{step:06d}-02"]), step=step)
        draws.append(float(torch.rand(())))
    return draws


def stages(folder: Path) -> None:
    """Train every case and write parameters and averages."""
    for layout, mode in CASES:
        learner = open_learner(layout, mode)
        train(learner, recipe_of(layout, mode), 0, NUM_STEPS)
        assert learner.trainee.ema is not None
        values = {f"live/{n}": v for n, v in learner.trainee.engine.full_parameters()}
        values |= {f"ema/{n}": v for n, v in learner.trainee.ema.full_parameters()}
        if learner.trainee.rank == 0:
            save_file(values, folder / f"{mode}-{layout}.safetensors")


def uninterrupted(folder: Path) -> None:
    for layout, mode in RESUMED:
        learner = open_learner(layout, mode)
        train(learner, recipe_of(layout, mode), 0, SAVED_AT)
        draws = train(learner, recipe_of(layout, mode), SAVED_AT, RESUMED_STEPS)
        write_state(learner, draws, folder / f"uninterrupted-{mode}-{layout}")


def killed(folder: Path) -> None:
    """Checkpoint in the middle, go on for a step, and die without a word."""
    for layout, mode in RESUMED:
        learner = open_learner(layout, mode)
        train(learner, recipe_of(layout, mode), 0, SAVED_AT)
        place = folder / f"checkpoints-{mode}-{layout}"
        ranks = learner.trainee.engine.ranks
        begun = str(checkpoint.begin(place, SAVED_AT)) if ranks.rank == 0 else ""
        temporary = Path(ranks.gather_json(begun)[0])
        learner.save(temporary)
        if learner.trainee.rank == 0:
            checkpoint.commit(temporary, step=SAVED_AT, keep=2)
        train(learner, recipe_of(layout, mode), SAVED_AT, SAVED_AT + 1)
    learner.trainee.engine.ranks.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def resumed(folder: Path) -> None:
    for layout, mode in RESUMED:
        learner = open_learner(layout, mode, seed=999)
        latest = checkpoint.find_latest(folder / f"checkpoints-{mode}-{layout}")
        assert latest is not None
        learner.load(latest.path)
        draws = train(learner, recipe_of(layout, mode), latest.step, RESUMED_STEPS)
        write_state(learner, draws, folder / f"resumed-{mode}-{layout}")


def write_state(learner: RlLearner, draws: list[float], path: Path) -> None:
    """Write digests of everything that must survive, for this rank."""
    trainee = learner.trainee
    assert trainee.ema is not None
    state = {
        "weights": digest_tensors(dict(trainee.engine.full_parameters())),
        "ema": digest_tensors(dict(trainee.ema.full_parameters())),
        "optimizer": digest_tensors(_moments(trainee.engine)),
        "rng": digest_tensors({"cpu": torch.get_rng_state()}),
        "draws": draws,
        "optimizer_steps": trainee.optimizer_steps,
    }
    path.with_name(f"{path.name}-rank{trainee.rank}.json").write_text(json.dumps(state))


def _moments(engine: Any) -> dict[str, torch.Tensor]:
    """Return this rank's share of Adam's moments, by place."""
    optimizer = engine._optimizer
    states = getattr(optimizer, "optimizer", optimizer).state.values()
    return {
        f"{place}/{name}": value
        for place, state in enumerate(states)
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Tiny parameters would all stay whole at stage 3; sharding them is what is tested.
    zero_engine.PERSISTENT_ELEMENTS = 0
    jobs = {"stages": stages, "uninterrupted": uninterrupted, "killed": killed, "resumed": resumed}
    jobs[sys.argv[1]](Path(sys.argv[2]))
    torch.distributed.barrier()
    # Interpreter exit sometimes aborts in gloo's threads ("terminate called without ...").
    os._exit(0)
