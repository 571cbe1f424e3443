"""What the algorithms on the forward process share: reducing rows, asking for other velocities.

Letters: N rows of a forward batch, or its pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlvid.algorithms.base import LossTerms
from rlvid.algorithms.forward_batch import Units
from rlvid.algorithms.old_policy import DecayRamp
from rlvid.config.algorithm import OldPolicyConfig


def ramp_of(config: OldPolicyConfig) -> DecayRamp:
    """Return how the old policy of a recipe follows."""
    return DecayRamp(start=config.start, rate=config.rate, cap=config.cap)


def alone(trained: Tensor) -> Units:
    """Return every trained rollout [G] as a unit of its own."""
    return [(index,) for index in trained.nonzero()[:, 0].tolist()]


def present(velocity: Tensor | None, algorithm: str, whose: str) -> Tensor:
    """Return the velocity, or say that the learner did not hand it in."""
    if velocity is None:
        raise ValueError(
            f"{algorithm}: expected velocities of the {whose} policy at the same rows, got None; "
            "`other_policies` asks for them"
        )
    return velocity


def row_terms(
    trained: Tensor,
    loss: Tensor,
    means: Mapping[str, Tensor],
    *,
    ratio: Tensor | None = None,
    log_prob: Tensor | None = None,
) -> LossTerms:
    """Reduce rows [N] to sums over trained ones, and to the extremes of a ratio where there is one.

    Args:
        means: metric to its rows [N].
    """
    maxima: dict[str, Tensor] = {}
    minima: dict[str, Tensor] = {}
    if ratio is not None:
        ratio = ratio.detach()
        above = torch.where(trained, ratio, -torch.inf)
        below = torch.where(trained, ratio, torch.inf)
        deviation = torch.where(trained, (ratio - 1.0).abs(), -torch.inf)
        maxima = {"ratio_max": above.amax(), "ratio_deviation_max": deviation.amax()}
        minima = {"ratio_min": below.amin()}
        means = {**means, "ratio": ratio}
    return LossTerms(
        loss_sum=torch.where(trained, loss, 0.0).sum(),
        num_rows=int(trained.sum()),
        sums={
            name: torch.where(trained, values.detach(), 0.0).sum() for name, values in means.items()
        },
        maxima=maxima,
        minima=minima,
        log_prob=None if log_prob is None else log_prob.detach(),
    )
