"""Tensors in pieces on disk, and a bfloat16 policy that changes its ZeRO stage between them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlvid.learners import fragments
from rlvid.learners.fragments import Piece, PieceReader, check_names, write_pieces
from rlvid.learners.rl import RlLearner
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.models import load_model
from rlvid.weights import digest_tensors


def _write(folder: Path) -> torch.Tensor:
    """Write 10 elements as three ranks hold them: 0 to 3, 4 to 6, 7 to 9."""
    values = torch.arange(10, dtype=torch.float32)
    for rank, (start, end) in enumerate(((0, 4), (4, 7), (7, 10))):
        write_pieces(folder, "state", rank, [Piece("master", "a/b", start, values[start:end])])
    return values


@pytest.mark.parametrize(("start", "end"), [(0, 10), (0, 1), (3, 8), (5, 6), (9, 10)])
def test_any_run_of_elements_is_put_together(tmp_path: Path, start: int, end: int) -> None:
    """Readers are cut differently from writers; a name may contain slashes."""
    values = _write(tmp_path)
    target = torch.full((end - start,), torch.nan)
    with PieceReader(tmp_path, "state") as reader:
        reader.fill("master", "a/b", start, target)
        assert torch.equal(reader.whole("master", "a/b"), values)
    assert torch.equal(target, values[start:end])


def test_elements_that_nobody_wrote_are_an_error(tmp_path: Path) -> None:
    """Uninitialised memory would train on."""
    _write(tmp_path)
    (tmp_path / "state-0001-000.safetensors").unlink()
    with (
        PieceReader(tmp_path, "state") as reader,
        pytest.raises(
            ValueError, match="'a/b': expected elements 2 to 9, 3 of them are in no file"
        ),
    ):
        reader.fill("master", "a/b", 2, torch.zeros(7))


def test_other_tensors_than_expected_are_named(tmp_path: Path) -> None:
    _write(tmp_path)
    with (
        PieceReader(tmp_path, "state") as reader,
        pytest.raises(ValueError, match=r"expected 2 trained tensors, got 1; not in both: c\."),
    ):
        check_names(reader, "master", ["a/b", "c"], "checkpoint x")


def test_folder_of_another_version_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected state-\*.safetensors, got none"):
        PieceReader(tmp_path, "state")


def test_large_share_goes_into_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Host memory holds one file's pieces at a time."""
    monkeypatch.setattr(fragments, "FILE_BYTES", 8)
    pieces = [Piece("m", str(n), 0, torch.full((2,), float(n))) for n in range(3)]
    write_pieces(tmp_path, "state", 0, pieces)
    assert len(list(tmp_path.glob("state-0000-*.safetensors"))) == 3
    with PieceReader(tmp_path, "state") as reader:
        assert reader.whole("m", "2").tolist() == [2.0, 2.0]


def test_bfloat16_policy_goes_on_at_another_stage_bit_for_bit(tmp_path: Path) -> None:
    """Its float32 values are not those of the live parameters, which follow from them."""
    seen = []
    groups = None
    for stage in (2, 1):
        recipe = tiny_recipe(
            model={"num_frames": 5, "height": 32, "width": 32, "dtype": "bfloat16"},
            rollout={"group_size": 2},
            learner={"zero_stage": stage, "mode": "full", "optimizer": {"learning_rate": 1e-3}},
            grpo={"max_replay_drift_frac": 1e9},
        )
        model = load_model(recipe.model, device="cpu")
        if groups is None:
            groups = tiny_groups(model, recipe, num_groups=1)
        learner = RlLearner(tiny_settings(recipe), model)
        if stage == 1:
            learner.load(tmp_path)
        engine = learner.trainee.engine
        for step in (0,) if stage == 2 else ():
            learner.publish(step)
            digest = learner.published_digest(step)
            batch = {name: replace(g, weights_digest=digest) for name, g in groups.items()}
            learner.train(batch, tiny_rewards(batch), step=step)
            learner.save(tmp_path)
        live, master = dict(engine.full_parameters()), dict(engine.full_parameters(master=True))
        seen.append((digest_tensors(live), digest_tensors(master)))
    assert seen[0] == seen[1]
    assert any(not torch.equal(live[n].float(), value) for n, value in master.items())
