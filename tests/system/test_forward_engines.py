"""Engines that look at final videos alone, end to end: Ray actors, DeepSpeed, the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.config import Recipe
from rlvid.launch.ledger import open_ledger
from rlvid.launch.run import run_recipe
from rlvid.learners import zero_state
from rlvid.learners.fragments import PieceReader
from rlvid.learners.old_policy import STEM
from rlvid.observability.recorder import read_rows
from rlvid.weights.folder import bucket_path, list_publishes, read_manifest
from tests.system.conftest import SMALL, merged

pytestmark = pytest.mark.slow

NUM_STEPS = 3


def _recipe(engine: str, folder: Path) -> Recipe:
    """Sample by the ODE alone, publish to files; nft's old policy lags from the second batch on."""
    levels = {"forward": {"num_noise_levels": 2}}
    own: dict[str, Any] = {
        "nft": {"nft": {"old_policy": {"rate": 0.5}}, **levels},
        "dpo": levels,
        "refl": {"refl": {"reward": {"use": "video_text"}}},
    }
    return Recipe.model_validate(
        merged(
            SMALL,
            {
                "phases": ["grpo"],
                "rollout": {
                    "guidance_scale": 1.0,
                    "step_plan": {"kind": "ode"},
                    "initial_noise": "independent",
                },
                "algorithm": {"use": engine, **own[engine]},
                "weights": {"transport": "shared_folder", "folder": str(folder)},
                "grpo": {"num_steps": NUM_STEPS},
            },
        )
    )


def _published(path: Path) -> dict[str, torch.Tensor]:
    """Return what a publish holds, by parameter, flat."""
    tensors = {}
    for entry in read_manifest(path).tensors:
        assert entry.dtype == "float32"
        content = bytearray(bucket_path(path, entry.bucket).read_bytes())
        count = torch.Size(entry.shape).numel()
        tensors[entry.name] = torch.frombuffer(
            content, dtype=torch.float32, count=count, offset=entry.offset
        )
    return tensors


def _checkpointed(path: Path, stem: str, kind: str) -> dict[str, torch.Tensor]:
    with PieceReader(path, stem) as reader:
        return {name: reader.whole(kind, name) for name in reader.names(kind)}


@pytest.mark.parametrize("engine", ["nft", "dpo", "refl"])
def test_engine_trains_on_groups_without_a_trained_step(engine: str, tmp_path: Path) -> None:
    """Sampled, stored, scored, learned from; and nft's actors are handed the old policy."""
    run, shared = tmp_path / "run", tmp_path / "weights"
    run_recipe(_recipe(engine, shared), run)
    rows = [r for r in read_rows(run / "metrics.jsonl") if r["step"]]
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        metrics = row["metrics"]
        assert metrics["learner/grad_norm/total"] > 0.0
        assert metrics["weights/version/value"] == row["step"]
        assert "learner/replay_drift/max" not in metrics
        assert ("learner/differentiable_reward/mean" in metrics) == (engine == "refl")
    phase = run / "phases" / "00_grpo"
    counts = open_ledger(phase / "ledger.sqlite").counts()
    assert (counts.issued, counts.in_flight) == (2 * NUM_STEPS, 0)

    newest = list_publishes(shared)[-1]
    assert read_manifest(newest).version == NUM_STEPS
    published = _published(newest)
    checkpoint = phase / "checkpoints" / f"step-{NUM_STEPS:08d}"
    live = _checkpointed(checkpoint, zero_state.STEM, zero_state.MASTER)
    is_live = all(torch.equal(published[name], value) for name, value in live.items())
    assert is_live == (engine != "nft")
    if engine == "nft":
        old = _checkpointed(checkpoint, STEM, "average")
        assert old.keys() == published.keys()
        assert all(torch.equal(published[name], value) for name, value in old.items())
