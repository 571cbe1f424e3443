"""An adapter for each dimension on real Ray: killed in the second, resumed, merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from rlvid.launch.run import artifacts_of
from rlvid.models.lora import LORA_FILE
from rlvid.observability.recorder import read_rows
from rlvid.testing import tiny_model
from tests.system.conftest import SMALL, merged
from tests.system.interrupted import finish, run_and_copy, start
from tests.unit.learners.clip_sets import dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 10
WITHIN_S = 300.0
ADAPTERS: dict[str, Any] = {
    "phases": ["sft"],
    "model": {"num_frames": 9, "height": 16, "width": 16},
    "sft": {
        "num_steps": 2 * STEPS,
        "batch_size": 4,
        "balance": "adapters",
        "merge": {"rule": "ties"},
        "anchor": {"beta": 0.5, "batch_size": 2},
        "learner": {
            "mode": "lora",
            "num_ranks": 2,
            "num_cpus": 0.5,
            "lora": {"rank": 2, "alpha": 4.0},
            "ema": {"decay": 0.5, "every": 2},
        },
        "checkpoint": {"every": 5},
    },
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, a data set of two dimensions, and the recipe."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model(0).save(str(folder / "pipeline"))
    tree = {
        "model": {"path": str(folder / "pipeline")},
        "sft": {"clips": str(dataset(folder / "set"))},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(merged(SMALL, ADAPTERS, tree)))
    return folder


def _policies(run: Path) -> list[Path]:
    """Return the files that must be the same: adapters, merged policy, merged average."""
    phase = run / "phases" / "00_sft"
    weights = "transformer/diffusion_pytorch_model.safetensors"
    adapters = [phase / "adapters" / name for name in ("00_camera", "01_motion")]
    return [
        *(folder / kind / LORA_FILE for folder in adapters for kind in ("policy", "policy_ema")),
        phase / "policy" / weights,
        phase / "policy_ema" / weights,
    ]


def test_killed_in_the_second_adapter_it_ends_in_the_same_policy(
    inputs: Path, tmp_path: Path
) -> None:
    """Cut off between two checkpoints or at one; bit for bit as the run that nobody cut off."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    recipe = inputs / "recipe.yaml"
    motion = Path("phases", "00_sft", "adapters", "01_motion")
    checkpoints = whole / motion / "checkpoints"
    run_and_copy(recipe, whole, run, lambda: any(checkpoints.glob("step-*")), within_s=WITHIN_S)
    assert not (run / motion / "done.json").exists()
    camera = _policies(run)[0].stat().st_mtime_ns
    finish(start(recipe, run, "--resume"), run, within_s=WITHIN_S)
    assert _policies(run)[0].stat().st_mtime_ns == camera, "the first was not trained again"
    for one, two in zip(_policies(whole), _policies(run), strict=True):
        first, second = load_file(one), load_file(two)
        assert [name for name in first if not first[name].equal(second[name])] == []
    rows = read_rows(run / "metrics.jsonl")
    trained = [(r["phase"], r["step"]) for r in rows if r["phase"].startswith("00_sft")]
    names = ["00_sft/00_camera"] * STEPS + ["00_sft/01_motion"] * STEPS
    assert trained == list(zip(names, range(1, 2 * STEPS + 1), strict=True))
    artifacts = artifacts_of(run)
    assert [p.model_path for p in (artifacts.policy, artifacts.ema_policy) if p] == [
        str(run / "phases" / "00_sft" / name) for name in ("policy", "policy_ema")
    ]
