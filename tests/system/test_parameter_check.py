"""A rank whose memory lies is found and named, before anything of it is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlvid.learners.testing import run_ranks

WORKER = Path(__file__).with_name("mismatch_ranks.py")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, one of which flips the lowest bit of one parameter after a step."""
    place = tmp_path_factory.mktemp("mismatch")
    assert run_ranks(WORKER, 2, str(place)) == [0, 0]
    return place


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_flipped_bit_is_said_by_every_rank(folder: Path, stage: int, rank: int) -> None:
    """After each step the gang agreed; all ranks must end, or the others would hang."""
    said = json.loads((folder / f"said-{rank}.json").read_text())[str(stage)]
    assert "the ranks hold different parameters" in said["corrupt"]
    assert "rank 0: trained" in said["corrupt"]
    assert "rank 1: trained" in said["corrupt"]


def test_nothing_of_it_is_saved(folder: Path) -> None:
    """A checkpoint of it would be found again at every resume."""
    said = json.loads((folder / "said-0.json").read_text())
    assert all("the ranks hold different" in found["save"] for found in said.values())
    assert not list(folder.glob("*.safetensors"))
