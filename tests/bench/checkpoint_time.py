"""Measures how long a checkpoint and a group take to be on the disk for good; prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.checkpoint_time [--folder FOLDER] [--repeats 3]

A checkpoint of a size is 16 equal files. `write` is the caller's writing into the system's memory;
`commit` syncs every file, takes its digest, drops its pages, reads it back from the disk, and
renames; `find` is what a resume does: it reads every byte. The floor is the same bytes written to
one file and synced once. A group is 8 rollouts with one trained step, in float32. Figures are the
fastest of the repeats, since others may use the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlvid.launch.group_store import open_group_store
from rlvid.learners import checkpoint
from rlvid.records import NoiseSettings, Prompt, Rollout, RolloutGroup, StepPlan
from rlvid.rewards.scoring import GroupScores
from tests.bench.timing import environment

SIZES_MB = (10, 100, 1000)
NUM_FILES = 16
LATENTS = {"tiny": (4, 5, 8, 8), "480 x 832, 33 frames": (16, 9, 60, 104)}


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def write_once(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_parts(folder: Path, part: bytes) -> None:
    for number in range(NUM_FILES):
        (folder / f"{number:02d}").write_bytes(part)


def checkpoint_times(folder: Path, size_mb: int, repeats: int) -> dict[str, Any]:
    part = os.urandom(size_mb * 1_000_000 // NUM_FILES)
    floor, checkpoints = folder / "floor", folder / f"{size_mb}mb"
    seconds: dict[str, list[float]] = {name: [] for name in ("floor", "write", "commit", "find")}
    for step in range(repeats):
        seconds["floor"].append(timed(partial(write_once, floor, part * NUM_FILES)))
        floor.unlink()
        temporary = checkpoint.begin(checkpoints, step)
        seconds["write"].append(timed(partial(write_parts, temporary, part)))
        commit = partial(checkpoint.commit, temporary, step=step, keep=1)
        seconds["commit"].append(timed(commit))
        seconds["find"].append(timed(partial(checkpoint.find_latest, checkpoints)))
    shutil.rmtree(checkpoints)
    fastest = {f"{name}_s": round(min(seconds[name]), 4) for name in seconds}
    total = fastest["write_s"] + fastest["commit_s"]
    return {
        "size_mb": size_mb,
        **fastest,
        "total_s": round(total, 4),
        "total_over_floor": round(total / fastest["floor_s"], 2),
        "mb_per_s": round(size_mb / total, 1),
        "all_s": {name: [round(s, 4) for s in values] for name, values in seconds.items()},
    }


def group_of(shape: tuple[int, ...]) -> RolloutGroup:
    """Return a group of 8 with one trained step; its latents are noise."""

    def latents(*first: int) -> torch.Tensor:
        return torch.randn(*first, *shape)

    rollouts = tuple(
        Rollout(
            index=index,
            noise_seed=index,
            step_seed=index,
            latents=latents(),
            trained_latents=latents(1),
            trained_next_latents=latents(1),
            behaviour_mean=latents(1),
            behaviour_log_prob=torch.zeros(1),
        )
        for index in range(8)
    )
    plan = StepPlan(
        sigmas=(1.0, 0.5, 0.0),
        stochastic_steps=(0,),
        trained_steps=(0,),
        noise=NoiseSettings(schedule="flash", eta=0.7, truncation=0.45, first_sigma=0.5),
        num_noises=1,
    )
    return RolloutGroup(
        group_id="000000-00",
        lease_id="lease",
        prompt=Prompt(prompt_id="p", text="a red ball falls"),
        plan=plan,
        rollouts=rollouts,
        policy_version=0,
        weights_digest="digest",
        actor_id="actor-0.0",
        sample_s=1.0,
        num_forwards=8,
    )


def group_times(folder: Path, name: str, repeats: int) -> dict[str, Any]:
    group = group_of(LATENTS[name])
    scores = GroupScores(scores=(), decode_s=0.0, score_s=0.0)
    store = open_group_store(folder / "groups")
    stored = store.write(group, scores, step=0)
    calls: dict[str, Callable[[], object]] = {
        "write": lambda: store.write(group, scores, step=0),
        "index": store.index,
        "read": lambda: store.read(group.group_id),
    }
    fastest = {
        f"{call}_s": round(min(timed(function) for _ in range(repeats)), 5)
        for call, function in calls.items()
    }
    stored.path.unlink()
    return {"latents": name, "size_mb": round(stored.num_bytes / 1e6, 3), **fastest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: here")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder or Path.cwd()) as name:
        folder = Path(name)
        result = {
            "checkpoints": [
                checkpoint_times(folder, size_mb, arguments.repeats) for size_mb in SIZES_MB
            ],
            "groups": [group_times(folder, latents, 3 * arguments.repeats) for latents in LATENTS],
            "environment": environment(torch.device("cpu")),
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
