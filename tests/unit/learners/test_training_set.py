"""Which clips of a data set are trained on, with which weight, and what an anchor adds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.config.sft import WeightingConfig
from rlvid.data.engine.store import ClipStore
from rlvid.learners.sft import REAL, SftLearner, sft_settings
from rlvid.learners.testing import tiny_recipe
from rlvid.learners.training_set import weighted
from rlvid.models.policy import Policy
from rlvid.testing import tiny_model
from rlvid.weights import digest_tensors
from tests.unit.learners.clip_sets import dataset, record


def _open(folder: Path, dataset: Path, **changes: Any) -> SftLearner:
    sft = {
        "num_steps": 20,
        "batch_size": 4,
        "clips": str(dataset),
        "learner": {"mode": "full", "zero_stage": 1, "optimizer": {"learning_rate": 3e-3}},
    }
    recipe = tiny_recipe(sft={**sft, **changes})
    return SftLearner(sft_settings(recipe, Policy(model_path="tiny"), folder), tiny_model(0))


def _digest(learner: SftLearner) -> str:
    return digest_tensors(dict(learner.trainee.engine.full_parameters()))


def test_filter_and_weights_by_hand() -> None:
    records = [record(0, 0, 0.1), record(0, 1, 0.9), record(1, 0, 0.5), record(1, 1, 0.5)]
    config = WeightingConfig(kind="raw", best_frac=0.5, normalise=False)
    kept, weights = weighted(records, config, where="x")
    assert [record.clip_id for record in kept] == ["0-1", "1-0"]
    assert weights.tolist() == pytest.approx([0.9, 0.5])


def test_by_dimension_takes_the_score_of_the_clips_own() -> None:
    records = [record(0, 0, 0.2), record(1, 0, 0.8)]
    config = WeightingConfig(kind="raw", by="dimension", normalise=False)
    assert weighted(records, config, where="x")[1].tolist() == pytest.approx([0.1, 0.4])


def test_standardised_dimensions_weigh_alike() -> None:
    """One dimension scores .1 and .2, the other .8 and .9: the same weights after it."""
    records = [record(0, 0, 0.1), record(0, 1, 0.2), record(1, 0, 0.8), record(1, 1, 0.9)]
    config = WeightingConfig(kind="exponential", temperature=1.0, standardise=True)
    weights = weighted(records, config, where="x")[1].tolist()
    assert weights[:2] == pytest.approx(weights[2:])


def test_a_missing_score_leaves_the_clip_out() -> None:
    records = [record(0, 0, None), record(0, 1, 0.5)]
    kept, _ = weighted(records, WeightingConfig(kind="raw"), where="x")
    assert [record.clip_id for record in kept] == ["0-1"]
    with pytest.raises(ValueError, match="no clip of 'x' has the score"):
        weighted(records[:1], WeightingConfig(kind="raw"), where="x")


def test_a_clip_of_weight_zero_changes_nothing(tmp_path: Path) -> None:
    """Other latents under weight 0 end in the same weights, under weight 1 they do not."""
    digests: dict[str, list[str]] = {"raw": [], "uniform": []}
    for number in range(2):
        folder = dataset(tmp_path / str(number), [[0.0, 0.9], [0.5, 0.5], [0.3, 0.7]])
        if number:
            store = ClipStore(folder)
            rows = list(store.records([0]))
            latents = torch.randn(2, *tiny_model(0).latent_shape(9, 16, 16))
            kept = _open(tmp_path / "read", tmp_path / "0")._set.clips.latents(1)
            store.write(0, "plan", torch.stack([latents[0], kept]), rows)
        for kind, found in digests.items():
            weighting = {"kind": kind, "normalise": False}
            learner = _open(tmp_path / f"{kind}{number}", folder, weighting=weighting)
            learner.train_steps(0, 3)
            found.append(_digest(learner))
    assert digests["raw"][0] == digests["raw"][1]
    assert digests["uniform"][0] != digests["uniform"][1]


def test_an_anchor_adds_real_rows_of_weight_beta(tmp_path: Path) -> None:
    learner = _open(tmp_path, dataset(tmp_path / "set"), anchor={"beta": 0.5, "batch_size": 2})
    batch = learner.batch(0)
    assert batch.tasks[4:] == (REAL, REAL)
    # Each counts over B = 4: beta / A of the whole loss is 1/4 here, so 1 of the batch's 4.
    assert batch.weight.tolist() == pytest.approx([1, 1, 1, 1, 1, 1])
    seen = Counter(i for step in range(3) for i in learner.batch(step).indices[4:])
    assert seen == Counter(range(6)), "three steps of two go through all six real clips"
    assert learner.train_steps(0, 2)[-1].metrics["sft/loss/mean"] > 0


def test_balanced_batches_hold_equally_many_of_each_dimension(tmp_path: Path) -> None:
    learner = _open(tmp_path, dataset(tmp_path / "set"), balance="sampling")
    for step in range(4):
        assert Counter(learner.batch(step).tasks) == {"camera": 2, "motion": 2}
    clips = Counter(i for step in range(2) for i in learner.batch(step).indices)
    assert [clips[i] for i in range(6)] == [2, 2, 1, 1, 1, 1], "each dimension in passes of its own"


def test_projection_without_a_conflict_is_the_plain_step(tmp_path: Path) -> None:
    """With one dimension there is nothing to project, and the step is that of `sampling`."""
    folder = dataset(tmp_path / "set", [[0.1, 0.9]])
    losses = {}
    for balance in ("sampling", "projection"):
        learner = _open(
            tmp_path / balance,
            folder,
            balance=balance,
            learner={"mode": "full", "zero_stage": 0, "optimizer": {"learning_rate": 3e-3}},
        )
        reports = learner.train_steps(0, 3)
        losses[balance] = (_digest(learner), [r.metrics["sft/loss/mean"] for r in reports])
    assert losses["sampling"] == losses["projection"]


def test_projection_trains_on_two_dimensions(tmp_path: Path) -> None:
    learner = _open(
        tmp_path,
        dataset(tmp_path / "set"),
        balance="projection",
        anchor={"beta": 1.0, "batch_size": 2},
        learner={"mode": "full", "zero_stage": 0, "optimizer": {"learning_rate": 3e-3}},
    )
    reports = learner.train_steps(0, 4)
    assert all(r.metrics["sft/projection/conflicts"] >= 0 for r in reports)
    assert all(r.metrics["sft/grad_norm/total"] > 0 for r in reports)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchor": {"beta": 1.0}}, "has no real clips"),
        ({"weighting": {"kind": "raw", "min_reward": 0.95}}, "no clip of .* reaches 0.95"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _open(tmp_path, dataset(tmp_path / "set", num_real=0), **changes)


def test_weights_need_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need a data set of phase data_engine"):
        _open(tmp_path, Path("tiny_world"), weighting={"kind": "raw"}, num_clips=4)
