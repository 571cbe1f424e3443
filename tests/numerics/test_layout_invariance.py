"""One batch of 8, two micro-batches of 4, two ranks of 4: the same gradient (invariant 3)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlvid.learners.testing import run_ranks

WORKER = Path(__file__).with_name("layout_ranks.py")
LAYOUTS = {"whole": 1, "split": 1, "ranks": 2}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("layouts")
    for layout, num_ranks in LAYOUTS.items():
        assert run_ranks(WORKER, num_ranks, layout, str(folder)) == [0] * num_ranks
    return {layout: load_file(folder / f"{layout}.safetensors") for layout in LAYOUTS}


@pytest.mark.parametrize("phase", ["rl", "sft", "nft", "awm", "dpo"])
@pytest.mark.parametrize("layout", ["split", "ranks"])
def test_gradient_does_not_depend_on_the_layout(
    gradients: dict[str, dict[str, Tensor]], phase: str, layout: str
) -> None:
    """A mean of means, DeepSpeed's averaging or a missing divisor each change it by a factor.

    Only the order of float32 sums differs: 1e-5 of the largest element of the gradient.
    """
    expected = {n: v for n, v in gradients["whole"].items() if n.startswith(f"{phase}/")}
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 0.0
    for name, value in expected.items():
        got = gradients[layout][name]
        torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-5 * largest, msg=name)
