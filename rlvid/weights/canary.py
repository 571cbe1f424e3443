"""The behavioural canary: a fixed input on which every actor must answer as the learner does.

Digests prove that the bytes arrived. Only this proves that they are what samples: it also finds
another attention backend, dtype or scheduler, and an adapter that is bound but not applied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlvid.weights.errors import WeightsError

_TOLERANCE = {
    torch.float64: 1e-5,
    torch.float32: 1e-5,
    torch.float16: 0.02,
    torch.bfloat16: 0.05,
}
"""Largest difference of two velocities of order 1. float32 leaves room for another order of
summation; the half types for some roundings of 2^-10 and 2^-8 on the way through the layers."""


def canary_tolerance(dtype: torch.dtype | str) -> float:
    """Return how far two correct answers of a model that computes in `dtype` may differ."""
    found = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return _TOLERANCE[found]


def check_canary(actor_id: str, answer: Tensor, expected: Tensor, tolerance: float) -> float:
    """Compare an actor's velocity with the learner's; return the largest difference.

    Raises:
        WeightsError: it is beyond the tolerance, or not a number.
    """
    difference = float((answer.float() - expected.float()).abs().max())
    if not difference <= tolerance:
        raise WeightsError(
            f"{actor_id}: canary velocity differs from the learner's by {difference:.3g}, "
            f"expected at most {tolerance:g}; the actor does not sample with the published "
            "policy (dtype, adapter or attention backend differ)"
        )
    return difference
