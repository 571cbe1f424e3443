"""One adapter for each dimension, merged: the whole phase in this process, on a tiny real model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.config import Recipe
from rlvid.launch.phases import sft as phase
from rlvid.launch.phases.base import Artifacts, PhaseContext
from rlvid.learners import checkpoint
from rlvid.learners.sft import SftLearner, SftSettings
from rlvid.learners.sft_adapters import AdapterPlan, adapter_settings, plan_adapters
from rlvid.learners.testing import tiny_recipe
from rlvid.models.lora import LORA_FILE, read_lora
from rlvid.models.policy import Policy, open_policy
from rlvid.observability.recorder import Recorder, read_rows
from rlvid.records import StepReport
from rlvid.testing import tiny_model
from tests.unit.learners.clip_sets import dataset

THREE = ("camera", "motion", "physics")


class KilledError(Exception):
    """Stands for the end of the process."""


class Gang:
    """LearnerGroup's calls, of one rank in this process."""

    calls_left = 10**6
    """Of `train_steps`, over all gangs."""

    def __init__(self, settings: SftSettings) -> None:
        self._learner = SftLearner(settings)

    def wait_ready(self, deadline_s: float) -> None:
        pass

    def load_checkpoint(self, path: Path) -> None:
        self._learner.load(path)

    def train_steps(self, first: int, last: int) -> list[StepReport]:
        if not Gang.calls_left:
            raise KilledError
        Gang.calls_left -= 1
        return self._learner.train_steps(first, last)

    def save_checkpoint(self, folder: Path, *, step: int, keep: int) -> None:
        with checkpoint.writing(folder, step=step, keep=keep) as temporary:
            self._learner.save(temporary)

    def export(self, folder: Path) -> None:
        self._learner.export(folder)

    def shutdown(self) -> None:
        pass


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def remote(**resources: float) -> Any:
        return lambda function: SimpleNamespace(remote=function)

    monkeypatch.setattr(phase, "LearnerGroup", Gang)
    monkeypatch.setattr(phase, "ray", SimpleNamespace(remote=remote, get=lambda x, timeout: x))
    monkeypatch.setattr(Gang, "calls_left", 10**6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_model(0).save(str(folder))
    return Policy(model_path=str(folder))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("set"), dimensions=THREE)


def _recipe(clips: Path, **changes: Any) -> Recipe:
    learner: dict[str, Any] = {
        "mode": "lora",
        "zero_stage": 0,
        "lora": {"rank": 2, "alpha": 4.0},
        "optimizer": {"learning_rate": 1e-2},
    }
    sft = {
        "num_steps": 13,
        "batch_size": 4,
        "clips": str(clips),
        "balance": "adapters",
        "learner": {**learner, **changes.pop("learner", {})},
        "checkpoint": {"every": 2},
    }
    return tiny_recipe(sft={**sft, **changes})


def _run(recipe: Recipe, run: Path, base: Policy, *, resume: bool = False) -> Artifacts:
    folder = run / "phases" / "01_sft"
    folder.mkdir(parents=True, exist_ok=True)
    with Recorder(run, folder.name) as recorder:
        context = PhaseContext(recipe=recipe, folder=folder, recorder=recorder, resume=resume)
        return phase.Sft().run(context, Artifacts(base_policy=base, policy=base))


def _weights(policy: Policy, recipe: Recipe) -> dict[str, Tensor]:
    return open_policy(policy, recipe.model, "cpu").transformer.state_dict()


def _same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


def _adapter_folders(run: Path) -> list[Path]:
    return sorted((run / "phases" / "01_sft" / "adapters").iterdir())


def test_merged_policy_is_the_base_and_the_mean_of_the_kept_adapters(
    tmp_path: Path, base: Policy, clips: Path
) -> None:
    """From data set to the policy the next phase opens, which it does as plain weights."""
    recipe = _recipe(clips, merge={"weights": {"motion": 2.0}}, anchor={"beta": 0.5})
    artifacts = _run(recipe, tmp_path, base)
    assert artifacts.policy == Policy(model_path=str(tmp_path / "phases" / "01_sft" / "policy"))
    merged, before = _weights(artifacts.policy, recipe), _weights(base, recipe)
    folders = _adapter_folders(tmp_path)
    assert [folder.name for folder in folders] == ["00_camera", "01_motion", "02_physics"]
    layer = "blocks.1.attn1.to_v"
    deltas = []
    for folder in folders:
        tensors, config = read_lora(folder / "policy")
        product = tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
        deltas.append(config.alpha / config.rank * product)
        assert float(product.abs().max()) > 0.0
    expected = (deltas[0] + 2.0 * deltas[1] + deltas[2]) / 4.0
    change = merged[f"{layer}.weight"] - before[f"{layer}.weight"]
    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-6)
    index = json.loads((tmp_path / "phases" / "01_sft" / "adapters.json").read_text())
    assert [row["weight"] for row in index["adapters"]] == [1.0, 2.0, 1.0]
    assert [row["folder"] for row in index["adapters"]] == [f"adapters/{f.name}" for f in folders]


def test_steps_are_shared_out_and_metrics_are_by_dimension(
    tmp_path: Path, base: Policy, clips: Path
) -> None:
    """13 steps on three: 5, 4, 4; rows are labelled by the steps of the phase."""
    _run(_recipe(clips), tmp_path, base)
    rows = read_rows(tmp_path / "metrics.jsonl")
    steps = {name: [r["step"] for r in rows if r["phase"] == name] for name in _phases(rows)}
    assert steps == {
        "01_sft/00_camera": [1, 2, 3, 4, 5],
        "01_sft/01_motion": [6, 7, 8, 9],
        "01_sft/02_physics": [10, 11, 12, 13],
    }
    runs = {path.parent.name for path in (tmp_path / "tensorboard").rglob("events.*")}
    assert runs == {"00_camera", "01_motion", "02_physics"}


def _phases(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["phase"] for row in rows))


@pytest.mark.parametrize("calls", [4, 5])
def test_killed_in_the_second_of_three_it_ends_in_the_same_policy(
    tmp_path: Path, base: Policy, clips: Path, calls: int
) -> None:
    """Camera takes 3 calls; the second adapter is killed after 1 or 2 of its 2, bit for bit."""
    ema = {"ema": {"decay": 0.5, "every": 1}}
    recipe = _recipe(clips, learner=ema, anchor={"beta": 1.0, "batch_size": 2})
    whole = _run(recipe, tmp_path / "whole", base)
    Gang.calls_left = calls
    with pytest.raises(KilledError):
        _run(recipe, tmp_path / "killed", base)
    Gang.calls_left = 10**6
    camera = _adapter_folders(tmp_path / "killed")[0] / "policy" / LORA_FILE
    written = camera.stat().st_mtime_ns
    resumed = _run(recipe, tmp_path / "killed", base, resume=True)
    assert camera.stat().st_mtime_ns == written, "a finished adapter is not trained again"
    assert _same(_weights(whole.policy, recipe), _weights(resumed.policy, recipe))
    assert whole.ema_policy is not None
    assert resumed.ema_policy is not None
    averages = _weights(whole.ema_policy, recipe)
    assert _same(averages, _weights(resumed.ema_policy, recipe))
    assert not _same(averages, _weights(whole.policy, recipe))
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")]
    facts = [[(r["phase"], r["step"], r["metrics"]["sft/loss/mean"]) for r in of] for of in rows]
    assert facts[0] == facts[1]


def test_killed_in_the_merge_it_merges_again_and_trains_nothing(
    tmp_path: Path, base: Policy, clips: Path
) -> None:
    recipe = _recipe(clips, merge={"rule": "ties"})
    merged = _weights(_run(recipe, tmp_path, base).policy, recipe)
    shutil.rmtree(tmp_path / "phases" / "01_sft" / "policy")
    Gang.calls_left = 0
    assert _same(_weights(_run(recipe, tmp_path, base, resume=True).policy, recipe), merged)


def test_dimension_of_weight_zero_is_trained_kept_and_changes_nothing(
    tmp_path: Path, base: Policy, clips: Path
) -> None:
    """Only physics counts, so the policy is the base and its adapter."""
    recipe = _recipe(clips, merge={"weights": {"camera": 0.0, "motion": 0.0}})
    artifacts = _run(recipe, tmp_path, base)
    folders = _adapter_folders(tmp_path)
    assert all((folder / "policy" / LORA_FILE).is_file() for folder in folders)
    alone = Policy(model_path=base.model_path, lora_path=str(folders[2] / "policy"))
    expected = _weights(alone, recipe)
    for name, weight in _weights(artifacts.policy, recipe).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-6)


def test_an_adapter_sees_its_own_clips_and_the_real_ones(
    tmp_path: Path, base: Policy, clips: Path
) -> None:
    recipe = _recipe(clips, anchor={"beta": 1.0, "batch_size": 2})
    plans = plan_adapters(recipe, tmp_path)
    for plan in plans:
        batch = _open(recipe, base, plan, tmp_path).batch(0)
        assert batch.tasks == (*(plan.dimension,) * 4, "real", "real")


def test_each_adapter_has_a_seed_of_its_own(tmp_path: Path, base: Policy, clips: Path) -> None:
    """Other starts, noise and order; the same base."""
    recipe = _recipe(clips)
    plans = plan_adapters(recipe, tmp_path)
    learners = [_open(recipe, base, plan, tmp_path) for plan in plans]
    assert len({plan.seed for plan in plans}) == 3
    assert plan_adapters(recipe, tmp_path) == plans
    starts = [dict(learner.trainee.engine.full_parameters()) for learner in learners]
    name = "blocks.0.attn1.to_q.lora_A.weight"
    assert not starts[0][name].equal(starts[1][name])
    assert not learners[0].batch(0).noise.equal(learners[1].batch(0).noise)
    assert len({learner.trainee.base_digest for learner in learners}) == 1


def _open(recipe: Recipe, base: Policy, plan: AdapterPlan, folder: Path) -> SftLearner:
    return SftLearner(adapter_settings(recipe, base, plan, folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 2}, "sft.num_steps: .* expected at least 3, got 2"),
        ({"merge": {"weights": {"motoin": 1.0}}}, "no dimension 'motoin' .* did you mean 'motion'"),
        (
            {"merge": {"weights": dict.fromkeys(THREE, 0.0)}},
            "sft.merge.weights: expected one above 0, got 0 for all of camera, motion, physics",
        ),
        (
            {"weighting": {"kind": "raw", "min_reward": 0.6}},
            "no clip of '.*, dimension motion' reaches 0.6",
        ),
    ],
)
def test_what_cannot_end_well_is_refused_before_any_training(
    tmp_path: Path, base: Policy, clips: Path, changes: dict[str, Any], message: str
) -> None:
    Gang.calls_left = 0
    with pytest.raises(ValueError, match=message):
        _run(_recipe(clips, **changes), tmp_path, base)


def test_clips_without_dimensions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need a data set of phase data_engine, got .*'tiny_world"):
        plan_adapters(_recipe(Path("tiny_world")), tmp_path)


def test_one_dimension_is_refused(tmp_path: Path) -> None:
    """Clips that were made for none do not make a second one."""
    clips = dataset(tmp_path / "set", dimensions=("camera", "", "camera"))
    with pytest.raises(ValueError, match=r"sft.balance: .*expected two or more.*got 1 \(camera\)"):
        plan_adapters(_recipe(clips), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner": {"mode": "full"}}, "'adapters' needs learner.mode lora, got 'full'"),
        ({"initialise": True}, "'adapters' needs initialise false, got true"),
        ({"balance": "none", "merge": {"rule": "sum"}}, "merge: is of balance 'adapters', got .*"),
        ({"merge": {"weights": {"motion": -1.0}}}, "weights.motion: expected 0 or more, got -1"),
    ],
)
def test_recipe_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _recipe(Path("x"), **changes)
