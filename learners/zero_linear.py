"""Linear layers whose weight may be sharded away between forward and backward.

At ZeRO stage 3 a layer's weight is whole only while the layer computes. Autograd would keep it
longer: `torch.nn.functional.linear` saves a transposed view of it, which holds the storage that was
to be freed. DeepSpeed's remedy (`memory_efficient_linear`, runtime/zero/linear.py) replaces torch's
function for the whole process, adds the bias in a second rounding, so that a bf16 learner disagrees
with the actors about every velocity, and saves inputs that a frozen weight never asks for. Here the
layers of one transformer compute by torch's own kernel and save the weight itself, which DeepSpeed
has gathered again when the backward comes.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator


def let_go_of_weights(module: nn.Module) -> None:
    """Have every `nn.Linear` within compute so that its weight can be freed after its forward."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.forward = MethodType(_forward, part)  # type: ignore[method-assign]


def _forward(layer: nn.Linear, inputs: Tensor) -> Tensor:
    outputs: Tensor = _Linear.apply(inputs, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return outputs


class _Linear(torch.autograd.Function):
    """inputs [..., in] @ weight [out, in]^T + bias [out], in one rounding."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # A leaf is saved as itself, so that what ZeRO makes of its data in between is seen.
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, weight)
        return nn.functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        for_inputs, for_weight, for_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_inputs = of_weight = of_bias = None
        if for_inputs:
            with _gathered(weight):
                of_inputs = gradient.matmul(weight)
        if for_weight:
            of_weight = rows.t().matmul(inputs.reshape(-1, inputs.shape[-1]))
        if for_bias:
            of_bias = rows.sum(0)
        return of_inputs, of_weight, of_bias


@contextmanager
def _gathered(weight: Tensor) -> Iterator[None]:
    """Have a weight of ZeRO 3 whole, as it is already but where no hook of its layer ran."""
    status = getattr(weight, "ds_status", None)
    if status is None or status.name != "NOT_AVAILABLE":
        yield
        return
    weight.all_gather()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        weight.partition()  # type: ignore[attr-defined]
