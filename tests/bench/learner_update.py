"""Measures a learner's update on one core: replay as sampled or batched, whole or in chunks.

OMP_NUM_THREADS=1 python -m tests.bench.learner_update

Times are of the processor and not of the wall, so that others may use the machine. Drift is the
largest |ratio - 1| of fresh groups before the update, where as-sampled replay has exactly 0. A
tempered ratio rounds to 1 long before velocities agree bit for bit; the gradient norm shows more.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import torch

from rlvid.config import ModelConfig, Recipe
from rlvid.learners.local_gang import join_alone
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.models import load_model
from rlvid.models.base import VideoModel
from rlvid.models.lora import add_lora
from rlvid.records import RolloutGroup
from tests.bench.timing import environment

REPEATS = 4
NUM_GROUPS = 4


def recipe_of(replay: str, num_steps: int, mode: str) -> Recipe:
    model = ModelConfig()
    return tiny_recipe(
        model={"num_frames": model.num_frames, "height": model.height, "width": model.width},
        rollout={
            "group_size": 8,
            "num_denoising_steps": 10,
            "step_plan": {"kind": "random", "num_steps": num_steps, "range_frac": (0.0, 0.8)},
        },
        learner={"zero_stage": 2, "mode": mode, "replay": replay},
        grpo={"max_replay_drift_frac": 1e6},
    )


def update(
    learner: RlLearner, groups: dict[str, RolloutGroup], step: int, chunk: int
) -> dict[str, float]:
    """Train the groups in chunks and return the metrics, with the processor's seconds."""
    rewards, ids = tiny_rewards(groups), list(groups)
    plans = [group.plan for group in groups.values()]
    report, began = None, time.process_time()
    for first in range(0, len(ids), chunk):
        part = slice(first, first + chunk)
        tables = {name: table[part] for name, table in rewards.values.items()}
        report = learner.train_chunk(
            {name: groups[name] for name in ids[part]},
            replace(rewards, group_ids=tuple(ids[part]), values=tables),
            step=step,
            num_groups=len(ids),
            first_row=first,
            is_last=first + chunk >= len(ids),
            plans=plans,
        )
    assert report is not None
    return {**report.metrics, "seconds": time.process_time() - began}


def measured(replay: str, num_steps: int, mode: str, chunk: int) -> dict[str, Any]:
    """Take updates on fresh groups each and return what they cost and how exact they were."""
    recipe = recipe_of(replay, num_steps, mode)
    learner = RlLearner(tiny_settings(recipe), load_model(recipe.model, device="cpu"))
    actor: VideoModel = load_model(recipe.model, device="cpu")
    if mode == "lora":
        add_lora(actor.transformer, recipe.learner.lora)
    learner.publish(0)
    digest = learner.published_digest(0)
    groups = tiny_groups(actor, recipe, digest=digest, num_groups=NUM_GROUPS)
    # Only before the first update are these groups fresh; the times do not depend on it.
    runs = [update(learner, groups, step, chunk) for step in range(REPEATS + 1)]
    return {
        "drift_max": runs[0]["learner/replay_drift/max"],
        "grad_norm": runs[0]["learner/grad_norm/total"],
        "forwards": int(runs[0]["learner/forwards/count"]),
        "forward_rows": int(runs[0]["learner/forward_rows/count"]),
        "cpu_seconds_median": round(statistics.median(run["seconds"] for run in runs[1:]), 3),
    }


def measure_all(modes: Sequence[str]) -> dict[str, Any]:
    torch.set_num_threads(1)
    join_alone()
    result: dict[str, Any] = {"groups": NUM_GROUPS, "group_size": 8, "replay": [], "chunks": []}
    for mode in modes:
        for num_steps in (4,):
            for replay in ("as_sampled", "batched"):
                row: dict[str, Any] = {"mode": mode, "trained_steps": num_steps, "replay": replay}
                row |= measured(replay, num_steps, mode, NUM_GROUPS)
                result["replay"].append(row)
                print(row, file=sys.stderr)
    for chunk in (4, 1):
        row = {"groups_per_chunk": chunk, **measured("as_sampled", 2, "lora", chunk)}
        result["chunks"].append(row)
        print(row, file=sys.stderr)
    result["environment"] = environment(torch.device("cpu"))
    return result


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):  # DeepSpeed talks on stdout
        found = measure_all(sys.argv[1:] or ("lora", "full"))
    print(json.dumps(found, indent=1))
