"""Ranks that hold rows of different experts: nobody waits for ever, and no gradient is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlvid.learners.testing import run_ranks
from tests.numerics.expert_ranks import MODES

WORKER = Path(__file__).with_name("expert_ranks.py")
STAGES = {1: (0,), 2: (0, 1, 2, 3)}
"""Ranks to the ZeRO stages tried with them."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("experts")
    found = {}
    for num_ranks, stages in STAGES.items():
        assert run_ranks(WORKER, num_ranks, str(folder), *map(str, stages)) == [0] * num_ranks
        found[num_ranks] = json.loads((folder / f"{num_ranks}.json").read_text())
    return found


@pytest.mark.parametrize("stage", STAGES[2])
@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_have_the_gradient_norms_of_one(
    outcomes: dict[int, dict[str, Any]], mode: str, stage: int
) -> None:
    """1e-4: the order of float32 sums; the second norm is behind a step of Adam."""
    expected = outcomes[1][f"{mode}/0"]
    assert min(expected) > 0.0
    assert outcomes[2][f"{mode}/{stage}"] == pytest.approx(expected, rel=1e-4)
