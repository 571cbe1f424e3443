"""Engines on final videos: chunks, ranks and ZeRO stages change rounding at most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlvid.learners.testing import run_ranks
from tests.numerics.forward_ranks import ON_VIDEOS

WORKER = Path(__file__).with_name("forward_ranks.py")
STAGES = {1: (0,), 2: (0, 2, 3)}
"""Ranks to the ZeRO stages tried with them."""
LAYOUTS = [(num_ranks, stage) for num_ranks, stages in STAGES.items() for stage in stages]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Two batches of every engine in every cut, on one rank and on two."""
    folder = tmp_path_factory.mktemp("forward")
    found = {}
    for num_ranks, stages in STAGES.items():
        arguments = (str(folder), *map(str, stages))
        assert run_ranks(WORKER, num_ranks, *arguments) == [0] * num_ranks
        found[num_ranks] = json.loads((folder / f"{num_ranks}.json").read_text())
    return found


@pytest.mark.parametrize(("num_ranks", "stage"), LAYOUTS)
@pytest.mark.parametrize("engine", ON_VIDEOS)
def test_the_cut_into_chunks_moves_no_bit(
    outcomes: dict[int, dict[str, Any]], engine: str, num_ranks: int, stage: int
) -> None:
    """Policy, and what is published of it: for nft the old policy that lags behind."""
    found = outcomes[num_ranks]
    whole, pieces = (found[f"{engine}/{stage}/{name}"] for name in ("whole", "pieces"))
    assert pieces == whole
    assert min(whole["norms"]) > 0.0


@pytest.mark.parametrize(("num_ranks", "stage"), LAYOUTS[1:])
@pytest.mark.parametrize("engine", ON_VIDEOS)
def test_ranks_and_stages_have_the_gradient_norms_of_one_rank(
    outcomes: dict[int, dict[str, Any]], engine: str, num_ranks: int, stage: int
) -> None:
    """Noise that followed the rank, or an old policy that lagged on one of them, would show.

    The second batch is trained after a step and a move of the old policy. 1e-3: the order of
    float32 sums, which Adam's first step carries on where a gradient is next to nothing.
    """
    expected = outcomes[1][f"{engine}/0/whole"]["norms"]
    assert outcomes[num_ranks][f"{engine}/{stage}/whole"]["norms"] == pytest.approx(
        expected, rel=1e-3
    )


@pytest.mark.parametrize(("num_ranks", "stage"), LAYOUTS[1:])
def test_stored_pairs_are_trained_alike_by_any_layout(
    outcomes: dict[int, dict[str, Any]], num_ranks: int, stage: int
) -> None:
    """Offline dpo: a rank that fills up, or noise that followed the rank, would show."""
    expected, found = outcomes[1]["stored/0"], outcomes[num_ranks][f"stored/{stage}"]
    assert expected["grad_norm/total"][0] > 0.0
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-3, abs=1e-6), name
