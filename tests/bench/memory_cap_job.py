"""What `memory_cap` runs under its cap: GRPO steps of a Wan transformer by the learner; JSON lines.

One process does what actor and learner do: publish, sample groups with what was published, train
on them by `RlLearner.train`, which is a step of ZeRO. A line is written to the given file after the
opening and after every step, so that it is known how far a job came that was killed.
"""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvid.config import Recipe, RolloutConfig
from rlvid.learners.local_gang import join_alone
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from tests.bench.memory_group import own_peak_bytes
from tests.bench.wan_flops import TINY, WAN_1_3B
from tests.bench.wan_model import BenchSettings, ShapeModel

WAN_300M = replace(
    WAN_1_3B, name="wan-300m", num_heads=8, head_dim=128, num_layers=14, ffn_dim=5888
)
"""Wan2.1-1.3B with fewer heads and layers; a feed-forward layer is as much wider than the rest."""
SIZES = {WAN_300M.name: WAN_300M, TINY.name: TINY}
SAMPLE_ELEMENTS = 2**20
"""Of one weight, which is compared from step to step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job, as it is handed over in JSON."""

    size: str
    clip: tuple[int, int, int]
    """Pixel frames, height and width."""
    num_steps: int
    dtype: str
    learner: dict[str, Any]
    """Keys of the recipe's section."""


def recipe_of(job: Job) -> Recipe:
    frames, height, width = job.clip
    return tiny_recipe(
        model={"num_frames": frames, "height": height, "width": width, "dtype": job.dtype},
        rollout={"group_size": 2, "groups_per_step": 2, "num_denoising_steps": 2, "shift": 3.0},
        learner={"mode": "full", **job.learner},
        grpo={"num_steps": job.num_steps},
    )


def open_learner(job: Job) -> RlLearner:
    """Return the learner of the job around a transformer of random weights."""
    recipe = recipe_of(job)
    frames, height, width = job.clip
    settings = BenchSettings(
        size=SIZES[job.size],
        num_frames=frames,
        height=height,
        width=width,
        dtype=job.dtype,
        rollout=RolloutConfig(),
    )
    return RlLearner(tiny_settings(recipe), ShapeModel(settings))


def run_job(job: Job, lines: Path) -> None:
    """Train and write a line of figures for the opening and for each step."""
    started = time.perf_counter()
    learner, recipe = open_learner(job), recipe_of(job)
    specs = learner.trainee.engine.specs()
    with lines.open("w") as file:

        def say(**figures: Any) -> None:
            file.write(json.dumps({**figures, "peak_rss_bytes": own_peak_bytes()}) + "\n")
            file.flush()

        say(
            opened_s=round(time.perf_counter() - started, 2),
            num_parameters=sum(math.prod(spec.shape) for spec in specs),
            dtypes=sorted({str(spec.dtype).removeprefix("torch.") for spec in specs}),
        )
        for step in range(job.num_steps):
            say(step=step, **train_step(learner, recipe, step))


def train_step(learner: RlLearner, recipe: Recipe, step: int) -> dict[str, Any]:
    """Publish, sample and train once; return seconds of each and what the step changed."""
    clock = [time.perf_counter()]
    digest = learner.publish(step)[0].digest
    learner.release_buckets(step)
    clock.append(time.perf_counter())
    with torch.no_grad():
        groups = tiny_groups(
            learner.trainee.model,
            recipe,
            version=step,
            digest=digest,
            step=step,
            num_groups=recipe.rollout.groups_per_step,
        )
    rewards = tiny_rewards(groups)
    clock.append(time.perf_counter())
    before = sampled_weight(learner)
    metrics = learner.train(groups, rewards, step=step).metrics
    clock.append(time.perf_counter())
    change = sampled_weight(learner) - before
    publish_s, sample_s, train_s = (
        round(after - begun, 2) for begun, after in zip(clock, clock[1:], strict=False)
    )
    return {
        "publish_s": publish_s,
        "sample_s": sample_s,
        "train_s": train_s,
        "published_digest": digest,
        "reward_mean": float(rewards.values["reward"].mean()),
        "grad_norm": metrics["learner/grad_norm/total"],
        "replay_drift_max": metrics["learner/replay_drift/max"],
        "loss": metrics["learner/loss/mean"],
        "weight_changed_frac": float((change != 0).float().mean()),
        "weight_change_max": float(change.abs().max()),
    }


def sampled_weight(learner: RlLearner) -> Tensor:
    """Return the first elements of the largest trained weight, float32; a copy."""
    engine = learner.trainee.engine
    largest = max(engine.specs(), key=lambda spec: math.prod(spec.shape)).name
    with engine.whole([largest]) as tensors:
        return tensors[largest].flatten()[:SAMPLE_ELEMENTS].float().clone()


def main() -> None:
    given = json.loads(sys.argv[1])
    join_alone()
    run_job(Job(**{**given, "clip": tuple(given["clip"])}), Path(sys.argv[2]))


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):  # DeepSpeed talks on stdout
        main()
