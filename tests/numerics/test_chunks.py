"""A batch trained in chunks is the batch trained whole, bit for bit, and what is dropped is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlvid.learners.testing import run_ranks

WORKER = Path(__file__).with_name("chunk_ranks.py")
STAGES = {1: (2,), 2: (0, 1, 2, 3)}
"""Ranks to the ZeRO stages tried with them; on one rank the stages add alike."""
LAYOUTS = [(num_ranks, stage) for num_ranks, stages in STAGES.items() for stage in stages]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """All cuts and drops, on one rank and on two."""
    folder = tmp_path_factory.mktemp("chunks")
    found = {}
    for num_ranks, stages in STAGES.items():
        arguments = (str(folder), *map(str, stages))
        assert run_ranks(WORKER, num_ranks, *arguments) == [0] * num_ranks
        found[num_ranks] = json.loads((folder / f"{num_ranks}.json").read_text())
    return found


@pytest.mark.parametrize(("num_ranks", "stage"), LAYOUTS)
@pytest.mark.parametrize("reason", ["nothing", "one", "the first turn", "the last turn"])
def test_the_cut_into_chunks_moves_no_bit(
    outcomes: dict[int, dict[str, Any]], num_ranks: int, stage: int, reason: str
) -> None:
    """Groups of different numbers of forwards, padded ranks, clipping, a last chunk of nothing."""
    cuts = outcomes[num_ranks][str(stage)]["cuts"]
    assert cuts[f"{reason}/pairs"] == cuts[f"{reason}/whole"]


@pytest.mark.parametrize(("num_ranks", "stage"), LAYOUTS)
def test_dropped_groups_count_neither_in_gradient_nor_in_norm(
    outcomes: dict[int, dict[str, Any]], num_ranks: int, stage: int
) -> None:
    """Losses are divided by the planned rows, twice the trained ones here; ZeRO must mend it.

    The norm is measured before clipping: 1e-5 is float32 rounding, a wrong divisor is a factor 2.
    """
    found = outcomes[num_ranks][str(stage)]["dropped"]
    half = found["half"]["metrics"]
    for case in ("dropped", "missing"):
        assert found[case]["trained"] == found["half"]["trained"]
        assert found[case]["metrics"] == pytest.approx(half, rel=1e-5)


@pytest.mark.parametrize(("num_ranks", "stage"), LAYOUTS)
def test_a_dropped_group_and_one_that_never_came_are_the_same(
    outcomes: dict[int, dict[str, Any]], num_ranks: int, stage: int
) -> None:
    """The weights agree bit for bit: neither adds anything to the gradient."""
    found = outcomes[num_ranks][str(stage)]["dropped"]
    assert found["missing"]["weights"] == found["dropped"]["weights"]


def test_different_drops_train_different_policies(outcomes: dict[int, dict[str, Any]]) -> None:
    """Digests that ignored the gradient would pass the tests above."""
    cuts = outcomes[1]["2"]["cuts"]
    assert len({found["weights"] for found in cuts.values()}) == 4
