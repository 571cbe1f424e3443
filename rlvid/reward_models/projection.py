r"""Keeps an old judgement while a new one is learned: orthogonal projection of gradients.

Paper A adds new aesthetics by "data-aware orthogonal gradient projection"; its algorithm was NOT
FOUND. What is here is our reading (methods 1.3 [D]): A-GEM (arXiv:1812.00420, eq. 11) with a
reference batch of old pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def project_gradient(new: Sequence[Tensor], old: Sequence[Tensor]) -> tuple[list[Tensor], bool]:
    r"""Return `new` without what would raise the old loss, and whether it was changed.

        g = g_new - min(0, <g_new, g_old>) / ||g_old||^2 * g_old

    so <g, g_old> >= 0: a small step along -g does not raise the old loss to first order. All
    parameters make one vector. The trap: an optimiser with momentum or preconditioning (AdamW)
    does not step along -g. The learner therefore hands in minus the optimiser's step as `new`.

    Args:
        new, old: gradients of the same parameters, in the same order.

    Raises:
        FloatingPointError: one of them is not finite; a projection on it would be NaN everywhere.
    """
    if [g.shape for g in new] != [g.shape for g in old]:
        raise ValueError("project_gradient: new and old: expected gradients of the same parameters")
    product = sum_of_products(new, old)
    if not product.isfinite():
        raise FloatingPointError(
            f"project_gradient: expected finite gradients, got a product of {float(product)}"
        )
    if float(product) >= 0.0:
        return [g.clone() for g in new], False
    scale = product / sum_of_products(old, old)
    return [g - scale.to(g.dtype) * o for g, o in zip(new, old, strict=True)], True


def sum_of_products(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the dot product of two lists of tensors, in float64."""
    parts = [(a.double() * b.double()).sum() for a, b in zip(first, second, strict=True)]
    return torch.stack(parts).sum()
