"""What ZeRO keeps on the host steps, is dropped and goes on as what it keeps on the GPU.

There is no GPU here, so host and device are one memory: these tests run DeepSpeed's own code of
offload, which keeps gradients elsewhere and adds them up otherwise, but none of its copies.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlvid.config import LearnerConfig
from rlvid.learners import zero_engine
from rlvid.learners.zero_engine import ZeroEngine

OFFLOADS = [
    (1, {"optimizer": "cpu"}),
    (2, {"optimizer": "cpu"}),
    (3, {"optimizer": "cpu"}),
    (3, {"optimizer": "none", "parameters": "cpu"}),
    (3, {"optimizer": "cpu", "parameters": "cpu", "pin_memory": False}),
]
LEARNING_RATE = 1e-2
ROUNDING = 1e-6
"""Of a float32 norm, whose squares are added up in another order."""


class TwoBranches(nn.Module):
    """A part that every row goes through and two of which it takes one, like two experts."""

    def __init__(self, *, first: torch.dtype, second: torch.dtype) -> None:
        super().__init__()
        self.left = nn.Linear(33, 5, dtype=first)
        self.right = nn.Linear(33, 5, dtype=first)
        self.trunk = nn.Linear(7, 33, dtype=second)

    def forward(self, rows: Tensor, branch: str) -> Tensor:
        hidden = torch.tanh(self.trunk(rows.to(self.trunk.weight.dtype)))
        chosen = self.left if branch == "left" else self.right
        unused = self.right if branch == "left" else self.left
        hidden = hidden.to(chosen.weight.dtype)
        result: Tensor = chosen(hidden).float()
        return result if self.is_sparse else result + 0.0 * unused(hidden).float()

    is_sparse = False
    """Whether the branch not taken has no gradient, rather than one of zeros."""


@pytest.fixture(autouse=True)
def _sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny parameters would all stay whole at stage 3; both kinds are to be there."""
    monkeypatch.setattr(zero_engine, "PERSISTENT_ELEMENTS", 20)


def _open(
    stage: int,
    offload: dict[str, Any] | None,
    *,
    max_grad_norm: float = 1e9,
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32),
    is_sparse: bool = False,
) -> ZeroEngine:
    config = LearnerConfig.model_validate(
        {"zero_stage": stage, "mode": "full", "max_grad_norm": max_grad_norm, "offload": offload}
    )
    torch.manual_seed(0)
    network = TwoBranches(first=dtypes[0], second=dtypes[1])
    network.is_sparse = is_sparse
    return ZeroEngine(network, config, device=torch.device("cpu"))


def _add(engine: ZeroEngine, seed: int, branch: str, *, is_last: bool) -> None:
    rows = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))
    engine.backward(engine.module(rows, branch).square().sum(), is_last=is_last)


def _train(engine: ZeroEngine, first: int, last: int) -> list[float]:
    """Take steps of three micro-batches each, every other one through another branch."""
    norms = []
    for step in range(first, last):
        for part in range(3):
            branch = "left" if step % 2 else "right"
            _add(engine, 100 * step + part, branch, is_last=part == 2)
        norms.append(engine.step(LEARNING_RATE, divisor=3.0))
    return norms


def _values(engine: ZeroEngine) -> dict[str, Tensor]:
    """Return live and float32 parameters, as they are now."""
    live = {f"live/{name}": value.clone() for name, value in engine.full_parameters()}
    master = engine.full_parameters(master=True)
    return live | {f"master/{name}": value.clone() for name, value in master}


def _assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(got) == set(expected)
    assert [n for n, value in expected.items() if not torch.equal(got[n], value)] == []


@pytest.mark.parametrize(("stage", "offload"), OFFLOADS)
def test_steps_are_those_without_offload_bit_for_bit(stage: int, offload: dict[str, Any]) -> None:
    """Of several micro-batches, with a divisor, unclipped: the norm is not in the result."""
    plain, offloaded = _open(stage, None), _open(stage, offload)
    norms = _train(plain, 0, 3)
    assert _train(offloaded, 0, 3) == pytest.approx(norms, rel=ROUNDING)
    _assert_same(_values(offloaded), _values(plain))


@pytest.mark.parametrize(("stage", "offload"), OFFLOADS)
def test_clipped_steps_differ_by_the_rounding_of_the_norm(
    stage: int, offload: dict[str, Any]
) -> None:
    """Stages 1 to 3 add the squares parameter by parameter then, in float32."""
    plain, offloaded = (_open(stage, given, max_grad_norm=0.1) for given in (None, offload))
    assert _train(offloaded, 0, 3) == pytest.approx(_train(plain, 0, 3), rel=ROUNDING)
    expected = _values(plain)
    for name, value in _values(offloaded).items():
        torch.testing.assert_close(value, expected[name], rtol=0.0, atol=1e-6, msg=name)


@pytest.mark.parametrize(("stage", "offload"), OFFLOADS)
@pytest.mark.parametrize("is_last", [False, True])
def test_discarded_gradient_leaves_no_trace(
    stage: int, offload: dict[str, Any], is_last: bool
) -> None:
    clean, after = _open(stage, offload), _open(stage, offload)
    _add(after, 7, "left", is_last=is_last)
    after.discard()
    assert _train(after, 0, 2) == _train(clean, 0, 2)
    _assert_same(_values(after), _values(clean))


def test_branch_without_a_gradient_does_not_go_along_the_last_one() -> None:
    """DeepSpeed's buffer on the host keeps what no new gradient overwrites."""
    plain, offloaded = (_open(1, given, is_sparse=True) for given in (None, {"optimizer": "cpu"}))
    assert _train(offloaded, 0, 3) == pytest.approx(_train(plain, 0, 3), rel=ROUNDING)
    _assert_same(_values(offloaded), _values(plain))


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
)
def test_bfloat16_gradients_are_added_up_in_float32(
    stage: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """64 times the same gradient is 64 times as long; a bf16 sum of them is off by a percent."""
    norms = []
    for num_parts in (1, 64):
        engine = _open(stage, {"optimizer": "cpu"}, dtypes=dtypes)
        for part in range(num_parts):
            _add(engine, 7, "left", is_last=part == num_parts - 1)
        norms.append(engine.step(LEARNING_RATE))
    assert norms[1] == pytest.approx(64 * norms[0], rel=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradient_buffer_is_as_large_as_what_is_trained(stage: int) -> None:
    """DeepSpeed allocates its default, 2 GB, whole; a process with many of them cannot fork."""
    before = _reserved_bytes()
    engine = _open(stage, None)
    _add(engine, 0, "left", is_last=True)
    assert _reserved_bytes() - before < 10**9


def _reserved_bytes() -> int:
    """Return the size of this process's address space, memory never touched included."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("stage", "offload"), OFFLOADS)
@pytest.mark.parametrize("way", ["resume", "leave", "enter"])
def test_checkpoint_goes_on_with_and_without_offload_bit_for_bit(
    tmp_path: Path, stage: int, offload: dict[str, Any], way: str
) -> None:
    """From offload to offload, to none, and from none: the files are the same."""
    before = _open(stage, None if way == "enter" else offload)
    _train(before, 0, 2)
    before.save(tmp_path)
    after = _open(stage, None if way == "leave" else offload)
    after.load(tmp_path, num_steps=2)
    _assert_same(_values(after), _values(before))
    assert _train(after, 2, 4) == pytest.approx(_train(before, 2, 4), rel=ROUNDING)
    _assert_same(_values(after), _values(before))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"zero_stage": 0, "offload": {}}, r"offload.optimizer: 'cpu' needs zero_stage 1, 2 or 3"),
        (
            {"zero_stage": 2, "offload": {"parameters": "cpu"}},
            r"offload.parameters: 'cpu' needs zero_stage 3, got 2",
        ),
        ({"offload": {"optimizer": "none"}}, "got 'none' for both"),
        (
            {
                "zero_stage": 3,
                "offload": {"optimizer": "none", "parameters": "cpu", "adam": "deepspeed"},
            },
            "adam: 'deepspeed' steps on the host only",
        ),
        ({"offload": {"device": "cpu"}}, "device"),
    ],
)
def test_offload_that_zero_cannot_do_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LearnerConfig.model_validate(keys)
