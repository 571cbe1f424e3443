"""The phase `distillation` on real Ray: stages in order, resumed exactly, sampled as students."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rlvid.config import Recipe
from rlvid.config.loader import load_recipe
from rlvid.data.video_files import read_mp4
from rlvid.launch.cli import app
from rlvid.launch.ledger import open_ledger
from rlvid.launch.local_disk import LEDGER
from rlvid.launch.run import artifacts_of, run_recipe
from rlvid.launch.sample import open_stream, sample_student
from rlvid.models.policy import Policy
from rlvid.observability.recorder import read_rows
from rlvid.testing import tiny_model
from tests.system.conftest import SMALL, merged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TEXT = "a red ball falls"
MOTION = "distillation/motion/mean"
DMD: dict[str, Any] = {
    "num_steps": 4,
    "batch_size": 3,
    "fake_updates_per_student": 2,
    "optimizer": {"learning_rate": 1e-3},
    "fake_optimizer": {"learning_rate": 1e-3},
}
REGRESSION = {"num_steps": 4, "batch_size": 3, "optimizer": {"learning_rate": 1e-3}}
DISTILLATION: dict[str, Any] = {
    "phases": ["distillation", "evaluate"],
    "distillation": {
        "stages": ["few_step", "causal_teacher", "causal_init", "self_forcing"],
        "student_steps": [1.0, 0.5],
        "causal": {"frames_per_block": 1},
        "few_step": {**DMD, "gan": {"weight": 0.01, "num_clips": 8, "width": 16}},
        "causal_teacher": {**REGRESSION, "num_clips": 12},
        "causal_init": {**REGRESSION, "num_denoising_steps": 4},
        "self_forcing": DMD,
        "monitor": {"num_prompts": 2, "min_frac": None},
        "teacher_denoising_steps": 3,
        "learner": {"mode": "full", "num_ranks": 2, "num_cpus": 0.5},
        "checkpoint": {"every": 2},
    },
    "evaluate": {"stages": {"axes": {"TA": ["attribute_judge"]}, "undistilled_steps": 2}},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_model(0).save(str(folder))
    tree = merged(SMALL, DISTILLATION, {"model": {"path": str(folder)}})
    return Recipe.model_validate(tree)


@pytest.fixture(scope="module")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_recipe(recipe, folder)
    return folder


def test_every_stage_leaves_a_policy_that_says_how_it_is_sampled(run: Path, recipe: Recipe) -> None:
    phase = next((run / "phases").glob("*distillation"))
    found = {}
    for name in recipe.distillation.stages:
        done = json.loads((phase / name / "stage.json").read_text())
        assert done["motion_faded_at_step"] is None
        found[name] = Policy(model_path=str(phase / name / done["policy"]))
    assert found["few_step"].sampling is not None
    assert found["few_step"].sampling.layout is None
    assert found["causal_teacher"].sampling is None
    assert found["self_forcing"].sampling is not None
    assert found["self_forcing"].sampling.layout is not None
    assert artifacts_of(run).policy == found["self_forcing"]
    rows = [row for row in read_rows(run / "metrics.jsonl") if MOTION in row["metrics"]]
    assert [row["step"] for row in rows] == [2, 4, 2, 4]  # two stages, two checkpoints each


def test_a_student_is_sampled_as_it_was_trained(run: Path, recipe: Recipe) -> None:
    """By `rlvid sample`, streamed past the trained length, and by the evaluation that follows."""
    policy, out = artifacts_of(run).policy, run / "clip.mp4"
    one, other = (sample_student(TEXT, policy, recipe.model, seed=1) for _ in range(2))
    assert torch.equal(one, other)
    assert one.shape == (17, 3, 32, 32)
    parts = list(open_stream(TEXT, policy, recipe.model, seed=1, num_frames=40))
    streamed = torch.cat([part.frames for part in parts])
    assert streamed.shape == (40, 3, 32, 32)
    torch.testing.assert_close(streamed[:17], one, rtol=0.0, atol=1e-4)
    assert parts[0].frames.shape[0] == 1  # the first latent frame of the tiny VAE is one frame
    called = CliRunner().invoke(
        app, ["sample", TEXT, "--run", str(run), "--stream", "--frames", "30", "--out", str(out)]
    )
    assert called.exit_code == 0, called.output
    assert "first 1 frames after" in called.output
    assert read_mp4(out)[0].shape[0] == 30
    refused = CliRunner().invoke(app, ["sample", TEXT, "--run", str(run), "--steps", "4"])
    assert isinstance(refused.exception, ValueError)
    assert "leave --steps" in str(refused.exception)
    evaluation = artifacts_of(run).evaluation
    assert evaluation is not None
    tree = json.loads(Path(evaluation).read_text())
    assert policy.sampling is not None
    assert tree["students"] == {"after": policy.sampling.to_json()}
    scores = [pair["scores"] for pair in tree["pairs"]]
    assert any(before != after for score in scores for before, after in score.values())


def test_the_evaluation_has_a_column_for_each_student(run: Path, recipe: Recipe) -> None:
    """And one for the teacher in as few steps; the newest policy is not sampled twice."""
    artifacts = artifacts_of(run)
    assert [(stage.name, stage.teacher) for stage in artifacts.stages] == [
        ("few_step", "base"),
        ("self_forcing", "base"),
    ]
    assert artifacts.evaluation is not None
    tree = json.loads(Path(artifacts.evaluation).read_text())
    columns = {column["name"]: column for column in tree["stages"]["columns"]}
    passes = {name: column["num_function_evaluations"] for name, column in columns.items()}
    # 4 and 2 steps under guidance; a causal student passes once more to write its cache.
    assert passes == {"base": 8, "undistilled": 4, "few_step": 2, "self_forcing": 3}
    cells = {name: column["sets"]["full"] for name, column in columns.items()}
    after = next(row for row in tree["rows"] if row["name"] == "reward")
    assert cells["base"]["lines"]["reward"]["mean"] == pytest.approx(after["before"])
    assert cells["self_forcing"]["lines"]["reward"]["mean"] == pytest.approx(after["after"])
    assert cells["undistilled"]["lines"]["reward"] != cells["base"]["lines"]["reward"]
    for name in ("undistilled", "few_step", "self_forcing"):
        assert cells[name]["motion_share"]["value"] > 0.0
        assert cells[name]["seconds_per_clip"] > 0.0
    counts = open_ledger(next((run / "phases").glob("*evaluate")) / LEDGER).counts()
    assert counts.issued == 4 * recipe.evaluate.num_prompts
    assert "<th>undistilled" in (run / "report.html").read_text()


def test_resume_of_a_stage_equals_the_uninterrupted_run(
    run: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """Two ranks, from a checkpoint in the middle of the last stage; stages before are not run, nor
    is the evaluation, which has finished."""
    again = tmp_path / "run"
    shutil.copytree(run, again)
    phase = next((again / "phases").glob("*distillation"))
    last = phase / "self_forcing"
    (phase / "artifacts.json").unlink()
    (last / "stage.json").unlink()
    for made in last.glob("policy*"):
        shutil.rmtree(made)
    newest = max((last / "checkpoints").glob("*4*"))
    shutil.rmtree(newest)
    shutil.rmtree(phase / "causal_init" / "checkpoints")
    run_recipe(load_recipe(str(again / "recipe.yaml")), again, resume=True)
    assert not (phase / "causal_init" / "checkpoints").exists()
    whole = next((run / "phases").glob("*distillation")) / "self_forcing"
    for name in ("policy", "policy_ema"):
        weights = f"{name}/transformer/diffusion_pytorch_model.safetensors"
        assert (last / weights).read_bytes() == (whole / weights).read_bytes()
