"""Mean and spread of a scorer over past steps, exact to resume. Pure functions on small records."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStats:
    """Exponentially weighted mean and variance of one scorer."""

    mean: float = 0.0
    variance: float = 0.0
    """Population variance."""
    num_steps: int = 0
    """Steps that had a score."""


def updated(stats: RunningStats, scores: Tensor, momentum: float) -> RunningStats:
    r"""Take the scores of a step in.

    Step t of n gets weight momentum^(n-t), normalised to 1. With q = (1 - momentum) /
    (1 - momentum^n) the weight of the present step, p = 1 - q, and m_b, v_b its mean and variance:

        mean     <- p mean + q m_b
        variance <- p variance + q v_b + p q (m_b - mean)^2

    which is the mean and variance of the mixture. The first step has q = 1, so there is no start
    value to wash out; the last term makes the variance independent of a constant in the scores,
    which a difference of running moments is only up to cancellation.

    Args:
        scores: any shape, NaN where missing; without any score the statistics stay.
    """
    known = scores.double()[~scores.isnan()]
    if not known.numel():
        return stats
    batch_mean = float(known.mean())
    batch_variance = float(known.var(correction=0))
    num_steps = stats.num_steps + 1
    q = (1.0 - momentum) / (1.0 - momentum**num_steps)
    p = 1.0 - q
    return RunningStats(
        mean=p * stats.mean + q * batch_mean,
        variance=p * stats.variance + q * batch_variance + p * q * (batch_mean - stats.mean) ** 2,
        num_steps=num_steps,
    )


def standardised(scores: Tensor, stats: RunningStats, min_std: float) -> Tensor:
    """Return (scores - mean) / std in float64; without spread exactly 0, and NaN stays NaN."""
    std = math.sqrt(stats.variance)
    if std < min_std:
        return torch.where(scores.isnan(), torch.nan, torch.zeros_like(scores)).double()
    return (scores.double() - stats.mean) / std
