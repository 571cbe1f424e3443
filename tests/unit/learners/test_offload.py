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
from rlvid.learners import zero_engine, zero_settings
from rlvid.learners.disk_state import disk_zeros
from rlvid.learners.zero_engine import ZeroEngine

DISK = {"optimizer": "disk", "folder": "state"}
OFFLOADS = [
    (1, {"optimizer": "cpu"}),
    (1, DISK),
    (2, DISK),
    (3, DISK),
    (2, {"optimizer": "cpu"}),
    (3, {"optimizer": "cpu"}),
    (3, {"optimizer": "none", "parameters": "cpu"}),
    (3, {"optimizer": "cpu", "parameters": "cpu", "pin_memory": False}),
]
LEARNING_RATE = 1e-2
STEP_ELEMENTS = 200
"""More than the smaller parameters have together, fewer than two larger ones."""
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
def _sharded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tiny parameters would all stay whole at stage 3, and be stepped on in one go.

    Both kinds are to be there, and several goes. What is on disk lies in the test's own folder.
    """
    monkeypatch.setattr(zero_engine, "PERSISTENT_ELEMENTS", 20)
    monkeypatch.setattr(zero_settings, "STEP_ELEMENTS", STEP_ELEMENTS)
    monkeypatch.chdir(tmp_path)


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


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("offload", [None, {"optimizer": "cpu"}])
def test_step_in_several_goes_is_that_in_one_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, stage: int, offload: dict[str, Any] | None
) -> None:
    several = _open(stage, offload)
    assert _num_groups(several) > 1
    norms = _train(several, 0, 3)
    monkeypatch.setattr(zero_settings, "STEP_ELEMENTS", 2**25)
    one = _open(stage, offload)
    assert _num_groups(one) == 1
    assert _train(one, 0, 3) == pytest.approx(norms, rel=ROUNDING)
    _assert_same(_values(several), _values(one))


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("offload", [None, {"optimizer": "cpu"}])
def test_gradients_in_several_buckets_are_those_in_one(
    monkeypatch: pytest.MonkeyPatch, stage: int, offload: dict[str, Any] | None
) -> None:
    """A weight has more elements than a bucket here, as those of a 14B model have."""
    one = _open(stage, offload)
    norms = _train(one, 0, 3)
    monkeypatch.setattr(zero_settings, "MAX_BUCKET_ELEMENTS", 100)
    several = _open(stage, offload)
    assert _train(several, 0, 3) == pytest.approx(norms, rel=ROUNDING)
    _assert_same(_values(several), _values(one))


def test_state_on_disk_takes_its_room_at_once_and_leaves_no_file(tmp_path: Path) -> None:
    values = disk_zeros(tmp_path / "made", 1000)
    values += 1.0
    assert values.dtype == torch.float32
    assert values.sum() == 1000.0
    assert list((tmp_path / "made").iterdir()) == []
    assert _mapped_files(tmp_path / "made") == 1


def test_disk_without_room_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    """Written to a page that has no room behind it the process would die of SIGBUS."""
    with pytest.raises(OSError, match=r"offload.folder: .*: no room .* 4e\+09 GB for"):
        disk_zeros(tmp_path, 10**18)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_state_lies_on_the_disk_from_the_start_and_after_a_resume(
    tmp_path: Path, stage: int
) -> None:
    """Values and two moments of each group; a resume must not make them anew in memory."""
    before = _mapped_files(tmp_path / "state")
    engine = _open(stage, DISK)
    num_files = 3 * _num_groups(engine)
    assert _mapped_files(tmp_path / "state") - before == num_files
    _train(engine, 0, 2)
    engine.save(tmp_path)
    resumed = _open(stage, DISK)
    resumed.load(tmp_path, num_steps=2)
    _train(resumed, 2, 3)
    assert _mapped_files(tmp_path / "state") - before == 2 * num_files


def _num_groups(engine: ZeroEngine) -> int:
    """Return the goes in which an engine's optimiser steps."""
    return len(engine._optimizer.param_groups)


def _mapped_files(folder: Path) -> int:
    """Return how many unnamed files of a folder this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split()[5] for line in lines if str(folder) in line and "deleted" in line})


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
        ({"zero_stage": 0, "offload": DISK}, r"offload.optimizer: 'disk' needs zero_stage 1"),
        ({"offload": {"optimizer": "disk"}}, r"folder: expected one .* got None with 'disk'"),
        ({"offload": {"folder": "state"}}, r"folder: .* got 'state' with 'cpu'"),
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
