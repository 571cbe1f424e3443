"""ZeRO shards memory, not results; and a killed learner goes on as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlvid.learners.testing import run_ranks
from tests.system.learner_ranks import LAYOUTS

WORKER = Path(__file__).with_name("learner_ranks.py")
RESUMED = ("lora-2", "full-3")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps of every stage and mode, offloaded ones too, on two gloo ranks."""
    folder = tmp_path_factory.mktemp("stages")
    assert run_ranks(WORKER, 2, "stages", str(folder)) == [0, 0]
    return folder


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_every_stage_gives_the_parameters_of_stage_0(trained: Path, mode: str, layout: str) -> None:
    """Live and averaged parameters after 5 steps, with padding, clipping, warm-up and an anchor.

    The stages add the same float32 numbers in another order, and Adam divides by the root of a
    squared gradient: some 1e-7 relative in the gradient stay some 1e-7 of a step's 1e-3.
    """
    expected = load_file(trained / f"{mode}-0.safetensors")
    got = load_file(trained / f"{mode}-{layout}.safetensors")
    assert set(got) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_five_steps_move_the_parameters(trained: Path, mode: str) -> None:
    """Stages that all train nothing would agree too; the average must lag behind."""
    values = load_file(trained / f"{mode}-0.safetensors")
    live = {name.removeprefix("live/"): v for name, v in values.items() if "live/" in name}
    lag = max(float((values[f"ema/{name}"] - value).abs().max()) for name, value in live.items())
    assert lag > 1e-4


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One gang runs through; another is killed after its checkpoint, and a third goes on."""
    folder = tmp_path_factory.mktemp("resume")
    assert run_ranks(WORKER, 2, "uninterrupted", str(folder)) == [0, 0]
    assert run_ranks(WORKER, 2, "killed", str(folder)) == [-9, -9]
    assert run_ranks(WORKER, 2, "resumed", str(folder)) == [0, 0]
    return folder


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("rank", [0, 1])
def test_resume_equals_the_uninterrupted_run_bit_for_bit(
    resumed: Path, case: str, rank: int
) -> None:
    """Weights, Adam's moments, average, anchor (through the KL) and random state."""
    expected = json.loads((resumed / f"uninterrupted-{case}-rank{rank}.json").read_text())
    got = json.loads((resumed / f"resumed-{case}-rank{rank}.json").read_text())
    assert got == expected
