"""A checkpoint goes on with another number of ranks and another ZeRO stage, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.learners.fragments import PieceReader
from rlvid.learners.testing import run_ranks

WORKER = Path(__file__).with_name("relayout_ranks.py")
WAY = [
    (1, "2", "-", "a"),
    (2, "3", "a", "b"),
    (1, "2-offload", "b", "c"),
    (2, "3-disk", "c", "d"),
    (1, "0", "d", "e"),
    (2, "1", "e", "f"),
]
"""Ranks, stage with or without offload or state on disk, checkpoint read and written."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step each, with another layout each."""
    folder = tmp_path_factory.mktemp("relayout")
    for num_ranks, layout, read, write in WAY:
        arguments = (str(folder), layout, read, write)
        assert run_ranks(WORKER, num_ranks, *arguments) == [0] * num_ranks
    return folder


def _state(folder: Path) -> dict[str, Tensor]:
    """Return float32 parameters, moments and averages, whole and flat."""
    found: dict[str, Tensor] = {}
    kinds = (("optimizer", "master"), ("optimizer", "exp_avg"), ("optimizer", "exp_avg_sq"))
    for stem, kind in (*kinds, ("ema", "average")):
        with PieceReader(folder, stem) as reader:
            found |= {f"{kind}/{name}": reader.whole(kind, name) for name in reader.names(kind)}
    return found


def _seen(folder: Path) -> dict[str, Any]:
    seen: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return seen


@pytest.mark.parametrize(("read", "write"), [(read, write) for _, _, read, write in WAY[1:]])
def test_another_layout_holds_the_same_values(checkpoints: Path, read: str, write: str) -> None:
    """Float32 parameters, both moments, averages, and the live ones that follow from them."""
    expected, got = _state(checkpoints / read), _state(checkpoints / f"{write}-again")
    assert set(got) == set(expected)
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    seen, before = _seen(checkpoints / f"{write}-again"), _seen(checkpoints / read)
    assert (seen["live"], seen["ema"]) == (before["live"], before["ema"])


def test_each_step_moves_everything(checkpoints: Path) -> None:
    """Checkpoints that never change would pass."""
    states = [_state(checkpoints / write) for _, _, _, write in WAY]
    for before, after in zip(states, states[1:], strict=False):
        moved = [name for name, value in before.items() if not torch.equal(after[name], value)]
        assert {name.split("/")[0] for name in moved} == {
            "master", "exp_avg", "exp_avg_sq", "average",
        }  # fmt: skip


def test_new_ranks_draw_numbers_of_their_own(checkpoints: Path) -> None:
    """The old rank goes on with its own state; the new one must not repeat it."""
    draws = _seen(checkpoints / "b-again")["draws"]
    assert len(set(draws)) == 2


def test_file_that_is_missing_is_named_by_what_it_held(checkpoints: Path, tmp_path: Path) -> None:
    """A folder with rank 1's file lost still opens; half of every tensor would stay random."""
    for file in (checkpoints / "b").glob("optimizer-0000-*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with PieceReader(tmp_path, "optimizer") as reader:
        name = sorted(reader.names("master"))[0]
        target = torch.zeros(10**6)
        with pytest.raises(ValueError, match=r"master of .*: expected elements 0 to .* in no file"):
            reader.fill("master", name, 0, target)
