"""Run as one rank by test_chunks: FOLDER STAGE... Not a test itself."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rlvid.algorithms.score_table import RewardTable
from rlvid.config import Recipe
from rlvid.learners import zero_engine
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.records import RolloutGroup, StepReport
from rlvid.testing import tiny_model
from rlvid.weights import digest_tensors

NUM_GROUPS = 4
CUTS = {"whole": (4,), "pairs": (2, 2)}
"""Chunks of a batch, in groups; multiples of two ranks."""
DROPPED = {"nothing": (), "one": (1,), "the first turn": (0, 1), "the last turn": (2, 3)}
"""Rows of a batch whose groups have no spread; one batch each, in this order."""


def recipe_of(stage: int, **algorithm: Any) -> Recipe:
    return tiny_recipe(
        learner={
            "zero_stage": stage,
            "mode": "full",
            "max_grad_norm": 0.05,
            "optimizer": {"learning_rate": 1e-3},
            "micro_batch_rows": 2,
        },
        rollout={"group_size": 3, "step_plan": {"kind": "random", "num_steps": 2}},
        grpo={"max_replay_drift_frac": 1e6},
        algorithm={"clip_range": 0.1, **algorithm},
    )


def open_learner(stage: int, **algorithm: Any) -> RlLearner:
    learner = RlLearner(tiny_settings(recipe_of(stage, **algorithm)), tiny_model(0))
    learner.publish(0)
    return learner


def part_of(rewards: RewardTable, rows: list[int]) -> RewardTable:
    return replace(
        rewards,
        group_ids=tuple(rewards.group_ids[row] for row in rows),
        values={name: table[rows] for name, table in rewards.values.items()},
    )


def train(
    learner: RlLearner,
    groups: dict[str, RolloutGroup],
    rewards: RewardTable,
    cut: tuple[int, ...],
    missing: tuple[int, ...] = (),
    step: int = 0,
) -> StepReport:
    """Hand the batch in, in chunks; groups of `missing` never came."""
    ids, report, first = rewards.group_ids, None, 0
    for size in cut:
        rows = [row for row in range(first, first + size) if row not in missing]
        report = learner.train_chunk(
            {ids[row]: groups[ids[row]] for row in rows},
            part_of(rewards, rows),
            step=step,
            num_groups=len(ids),
            first_row=first,
            is_last=first + size == len(ids),
            rows=rows,
            plans=[group.plan for group in groups.values()],
        )
        first += size
    assert report is not None
    return report


def outcome(learner: RlLearner, report: StepReport) -> dict[str, Any]:
    names = ("learner/grad_norm/total", "learner/rows/count", "learner/loss/mean")
    return {
        "weights": digest_tensors(dict(learner.trainee.engine.full_parameters())),
        "metrics": {name: report.metrics[name] for name in names},
        "trained": list(report.trained_group_ids),
    }


def cuts(stage: int) -> dict[str, Any]:
    """Train four batches on the same groups in every cut, each with other groups dropped."""
    found = {}
    for name, cut in CUTS.items():
        learner = open_learner(stage)
        groups = sampled(learner)
        for reason, rows in DROPPED.items():
            rewards = tiny_rewards(groups, uniform=[f"000000-{row:02d}" for row in rows])
            found[f"{reason}/{name}"] = outcome(learner, train(learner, groups, rewards, cut))
    return found


def dropped_or_never_there(stage: int) -> dict[str, Any]:
    """Train a batch of which half is dropped, one whose half never came, and the other half."""
    found = {}
    for case in ("dropped", "missing", "half"):
        learner = open_learner(stage, step_weight="none")
        groups = sampled(learner)
        uniform = [f"000000-{row:02d}" for row in (2, 3)]
        rewards = tiny_rewards(groups, uniform=uniform if case == "dropped" else ())
        if case == "half":
            groups = {name: group for name, group in groups.items() if name not in uniform}
            rewards = part_of(rewards, [0, 1])
        missing = (2, 3) if case == "missing" else ()
        cut = (2,) if case == "half" else (2, 2)
        report = train(learner, groups, rewards, cut, missing)
        found[case] = outcome(learner, report)
    return found


@cache
def sampled_once() -> dict[str, RolloutGroup]:
    return tiny_groups(tiny_model(0), recipe_of(0), num_groups=NUM_GROUPS)


def sampled(learner: RlLearner) -> dict[str, RolloutGroup]:
    """Return groups of the policy that every learner here starts from."""
    digest = learner.published_digest(0)
    return {n: replace(group, weights_digest=digest) for n, group in sampled_once().items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Tiny parameters would all stay whole at stage 3; sharding them is what is tested.
    zero_engine.PERSISTENT_ELEMENTS = 0
    result = {
        str(stage): {"cuts": cuts(stage), "dropped": dropped_or_never_there(stage)}
        for stage in map(int, sys.argv[2:])
    }
    if torch.distributed.get_rank() == 0:
        number = torch.distributed.get_world_size()
        (Path(sys.argv[1]) / f"{number}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    # Interpreter exit sometimes aborts in gloo's threads ("terminate called without ...").
    os._exit(0)
