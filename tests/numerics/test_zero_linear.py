"""A linear layer of ZeRO 3 against torch's, bit for bit, and what it keeps alive."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlvid.learners.zero_linear import let_go_of_weights

ROWS = (2, 40)


def layer_of(dtype: torch.dtype, *, bias: bool = True, ours: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(96, 64, bias=bias).to(dtype)
    if ours:
        let_go_of_weights(nn.ModuleList([layer]))
    return layer


def inputs_of(dtype: torch.dtype, *, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(*ROWS, 96).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_are_torchs(dtype: torch.dtype, bias: bool) -> None:
    """A second rounding of the bias would show in bf16: three in ten numbers then differ."""
    plain, ours = (layer_of(dtype, bias=bias, ours=which) for which in (False, True))
    inputs = inputs_of(dtype)
    assert torch.equal(ours(inputs), plain(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_torchs(dtype: torch.dtype) -> None:
    found = []
    for ours in (False, True):
        layer, inputs = layer_of(dtype, ours=ours), inputs_of(dtype)
        layer(inputs).float().square().sum().backward()
        assert layer.bias is not None
        found.append([inputs.grad, layer.weight.grad, layer.bias.grad])
    for expected, got in zip(*found, strict=True):
        assert torch.equal(expected, got)


def test_second_bias_rounding_is_what_this_is_for() -> None:
    """The check above can fail: DeepSpeed's way of adding the bias does."""
    layer, inputs = layer_of(torch.bfloat16), inputs_of(torch.bfloat16)
    twice = inputs.matmul(layer.weight.t()) + layer.bias
    assert float((twice != layer(inputs)).float().mean()) > 0.1


def test_frozen_weight_keeps_no_input_and_no_view_of_itself() -> None:
    """Only the weight is saved, as itself, so that freeing its data frees the memory."""
    saved = saved_by(frozen=True)
    assert [tensor.data_ptr() for tensor in saved] == [saved[0].data_ptr()]
    assert isinstance(saved[0], nn.Parameter)


def test_trained_weight_keeps_its_input() -> None:
    assert sorted(tuple(tensor.shape) for tensor in saved_by(frozen=False)) == [
        (2, 40, 96),
        (64, 96),
    ]


def saved_by(*, frozen: bool) -> list[Tensor]:
    """Return what autograd keeps between a forward and its backward."""
    layer = layer_of(torch.float32, ours=True).requires_grad_(not frozen)
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(inputs_of(torch.float32))
    return saved


class _Status:
    name = "NOT_AVAILABLE"


def test_weight_that_is_sharded_away_is_gathered_for_the_backward() -> None:
    layer, inputs = (
        layer_of(torch.float32, ours=True).requires_grad_(False),
        inputs_of(torch.float32),
    )
    weight: Any = layer.weight
    whole, asked = weight.data, []

    def all_gather() -> None:
        asked.append("all_gather")
        weight.data = whole

    def partition() -> None:
        asked.append("partition")
        weight.data = torch.empty(0)

    outputs = layer(inputs)
    weight.ds_status, weight.all_gather, weight.partition = _Status(), all_gather, partition
    partition()
    outputs.sum().backward()
    assert asked == ["partition", "all_gather", "partition"]
    assert inputs.grad is not None
    assert torch.allclose(inputs.grad, whole.sum(0).expand(*ROWS, -1), atol=1e-5)
