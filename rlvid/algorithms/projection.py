"""Gradients of tasks that are trained together, without what one does against another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Gradient = Sequence[Tensor]
"""Of every parameter, in one order."""


def project_conflicts(gradients: Sequence[Gradient], *, seed: int) -> tuple[list[Tensor], int]:
    r"""Return the sum of the tasks' gradients after projection, and how many pairs conflicted.

    PCGrad (Yu et al., arXiv:2001.06782, algorithm 1): each task's gradient g_i meets the others,
    unprojected, in a random order; where <g_i, g_j> < 0,

        g_i <- g_i - <g_i, g_j> / ||g_j||^2 g_j

    With one task, or none that conflict, it is the plain sum. The trap: AdamW does not step along
    the gradient, so a projected sum may still raise a task's loss.

    Args:
        gradients: one for each task, its loss already weighted as in the whole loss.
        seed: of the order; equal on all ranks, whose gradients are equal.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    squares = [_product(g, g) for g in gradients]
    total = [torch.zeros_like(part) for part in gradients[0]]
    conflicts = 0
    for i, own in enumerate(gradients):
        projected = [part.clone() for part in own]
        for j in torch.randperm(len(gradients), generator=generator).tolist():
            if j == i or float(squares[j]) == 0.0:
                continue
            product = _product(projected, gradients[j])
            if float(product) < 0.0:
                conflicts += 1
                scale = product / squares[j]
                for part, other in zip(projected, gradients[j], strict=True):
                    part.sub_(scale.to(part.dtype) * other)
        for part, kept in zip(total, projected, strict=True):
            part.add_(kept)
    return total, conflicts


def _product(first: Gradient, second: Gradient) -> Tensor:
    """Return the dot product over all parameters, in float64."""
    parts = [(a.double() * b.double()).sum() for a, b in zip(first, second, strict=True)]
    return torch.stack(parts).sum()
