"""The reward_model phase through run_recipe: trains, hands on, is resumed, and is scored with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rlvid.config import Recipe
from rlvid.launch.phases.base import Artifacts, PhaseContext
from rlvid.launch.phases.reward_model import RewardModelPhase
from rlvid.launch.run import artifacts_of, run_recipe
from rlvid.models.policy import Policy
from rlvid.observability.recorder import Recorder, read_rows
from tests.system.conftest import merged

REWARD_MODEL: dict[str, Any] = {
    "phases": ["reward_model", "evaluate"],
    "reward_model": {
        "backbone": {"width": 4},
        "num_steps": 6,
        "batch_size": 4,
        "num_bootstrap": 100,
        "heldout_frac": 0.4,
        "checkpoint": {"every": 2},
        "pairs": {
            "weak": {
                "num_prompts": 16,
                "ladder": [
                    {"source": "true"},
                    {"source": "decoded", "worse_in": ["VQ"]},
                    {"num_denoising_steps": 1},
                ],
            }
        },
    },
    "rewards": {"scorers": [{"use": "trained_reward", "config": {"folder": "artifact:own"}}]},
}


@pytest.mark.slow
def test_trained_model_scores_the_phase_after_it(
    small_tree: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_recipe(Recipe.model_validate(merged(small_tree, REWARD_MODEL)), run)
    rows = [r for r in read_rows(run / "metrics.jsonl") if r["phase"] == "00_reward_model"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert {"reward_model/VQ/heldout_accuracy", "reward_model/TA/calibration_error"} <= set(
        rows[-1]["metrics"]
    )
    folder = Path(artifacts_of(run).reward_models["own"])
    assert {path.name for path in folder.iterdir()} == {"config.json", "reward_model.safetensors"}
    evaluation = json.loads((run / "phases" / "01_evaluate" / "evaluation.json").read_text())
    (row,) = [row for row in evaluation["rows"] if row["name"] == "trained_reward"]
    assert (row["num_pairs"], row["num_missing"]) == (8, 0)
    moved = tmp_path / "moved"
    run.rename(moved)
    assert artifacts_of(moved).reward_models["own"].startswith(str(moved)), "a run may be moved"


@pytest.mark.slow
def test_resumed_phase_ends_in_the_same_weights(small_tree: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit: pairs are made again, steps go on from the checkpoint, no row comes twice."""
    recipe = Recipe.model_validate(merged(small_tree, REWARD_MODEL))
    whole = _run(recipe, tmp_path / "whole")
    _run(recipe, tmp_path / "broken")
    for name in ("step-00000004", "step-00000006"):  # as if stopped between 2 and 4
        for file in (tmp_path / "broken/phases/00_reward_model/checkpoints" / name).glob("*"):
            file.unlink()
        (tmp_path / "broken/phases/00_reward_model/checkpoints" / name).rmdir()
    again = _run(recipe, tmp_path / "broken")
    one, two = (load_file(folder / "reward_model.safetensors") for folder in (whole, again))
    assert [name for name in one if not one[name].equal(two[name])] == []
    assert (whole / "config.json").read_text() == (again / "config.json").read_text()
    steps = [row["step"] for row in read_rows(tmp_path / "broken" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6, 7]


def _run(recipe: Recipe, run: Path) -> Path:
    """Run the phase alone, with no Ray, and return the folder of the model."""
    keeps_all = {"checkpoint": recipe.reward_model.checkpoint.model_copy(update={"keep": 9})}
    recipe = recipe.model_copy(
        update={"reward_model": recipe.reward_model.model_copy(update=keeps_all)}
    )
    folder = run / "phases" / "00_reward_model"
    folder.mkdir(parents=True, exist_ok=True)
    policy = Policy(model_path="tiny")
    with Recorder(run, folder.name) as recorder:
        context = PhaseContext(recipe=recipe, folder=folder, recorder=recorder, resume=True)
        artifacts = RewardModelPhase().run(context, Artifacts(base_policy=policy, policy=policy))
    return Path(artifacts.reward_models["own"])
