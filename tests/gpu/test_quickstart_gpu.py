"""The quickstart with all its roles on one GPU, through the same entry point as the CLI."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlvid.config.loader import load_recipe
from rlvid.launch.run import run_recipe
from rlvid.observability.recorder import read_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs a CUDA device: torch.cuda.is_available() is False",
    ),
]

OVERRIDES = (
    "rollout.num_actors=1",
    "rollout.num_gpus=0.4",
    "rewards.decode_gpus=0.2",
    "learner.num_gpus=0.4",
    "grpo.num_steps=2",
    "grpo.evaluate_every=0",
    "evaluate.num_prompts=2",
)
"""One actor instead of two, so that the shares of the roles fit one GPU."""


def test_quickstart_on_one_gpu_replays_within_the_clip_range(tmp_path: Path) -> None:
    """Actor and learner are two processes on the GPU; their ratio before an update must be near 1.

    On a CPU it is exactly 1. A GPU promises that only if both pick the same kernels, so the bound
    is the clip range, beyond which clipping would act on rounding.
    """
    recipe = load_recipe("quickstart_cpu", OVERRIDES)
    report = run_recipe(recipe, tmp_path / "run")

    assert report.is_file()
    rows = [r for r in read_rows(tmp_path / "run" / "metrics.jsonl") if r["phase"] == "00_grpo"]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["metrics"]["learner/replay_drift/max"] < recipe.algorithm.clip_range
        assert row["metrics"]["learner/grad_norm/total"] > 0.0
