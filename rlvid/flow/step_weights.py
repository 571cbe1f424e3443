"""Weight of a trained denoising step in the loss, against its natural gradient scale.

The score-function gradient of a step carries lambda(sigma) (`rlvid.flow.sde.gradient_scale`), which
changes several-fold along a schedule. Every published cure is a weight W(sigma).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlvid.flow.sde import gradient_scale, step_std
from rlvid.records import NoiseSettings, StepPlan

MEAN_NORMALISED: Mapping[str, bool] = {
    "none": False,
    "inverse_lambda": True,
    "tempflow": True,
    "longcat": False,
    "guard": False,
}
"""Whether the source divides the weights by their mean over the update: Flash-GRPO
(arXiv:2605.15980) and TempFlow-GRPO (arXiv:2508.04324) do; LongCat-Video (arXiv:2510.22200) and
GRPO-Guard (arXiv:2510.22319) do not."""

KL_WEIGHT_POWER: Mapping[str, int] = {
    "none": 0,
    "inverse_lambda": 2,
    "tempflow": 0,
    "longcat": 2,
    "guard": 0,
}
"""The KL is weighted by W to this power. A KL on velocities scales with lambda^2, so where W stands
for 1 / lambda its square flattens the KL: LongCat-Video publishes that, and inverse_lambda follows
it. The others leave the KL alone."""


def step_weight(kind: str, noise: NoiseSettings, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Return W [B] of steps from sigma to sigma_next, not yet normalised.

    none 1; inverse_lambda 1 / lambda; tempflow the step's std; longcat
    sqrt(sigma / (D (1 - sigma))) with D = sigma - sigma_next and sigma held at `first_sigma` as in
    Flow-SDE; guard 1 / D, which belongs with the ratio `guard`.
    """
    if kind == "none":
        return torch.ones_like(sigma)
    if kind == "inverse_lambda":
        return 1.0 / gradient_scale(noise, sigma, sigma_next)
    if kind == "tempflow":
        return step_std(noise, sigma, sigma_next)
    if kind == "longcat":
        held = sigma.clamp(max=noise.first_sigma)
        return torch.sqrt(held / ((1.0 - held) * (sigma - sigma_next)))
    if kind == "guard":
        return 1.0 / (sigma - sigma_next)
    raise ValueError(
        f"algorithm.step_weight: unknown name: expected one of {', '.join(MEAN_NORMALISED)}, "
        f"got {kind!r}"
    )


def normalise_weights(kind: str, weights: Tensor) -> Tensor:
    """Divide weights [any shape] of a whole batch by their mean, where the source of `kind` does.

    The mean is over all groups of the batch, not of one rank: else the gradient would depend on
    which rank got which group.
    """
    return weights / weights.mean() if MEAN_NORMALISED[kind] else weights


def update_step_weights(kind: str, plans: Sequence[StepPlan]) -> list[Tensor]:
    """Return for each group of one batch its normalised weights [S] float32, in order of `plans`.

    The mean is over groups and their trained steps; every group counts alike, also one that turns
    out to teach nothing. So the weights are known when the groups are planned, before a score is:
    a batch can be trained in chunks, and no scalar could mend it afterwards, since policy loss and
    KL carry different powers of the weight (`KL_WEIGHT_POWER`).
    """
    raw = []
    for plan in plans:
        steps = plan.trained_steps
        sigma = torch.tensor([plan.sigmas[j] for j in steps], dtype=torch.float64)
        sigma_next = torch.tensor([plan.sigmas[j + 1] for j in steps], dtype=torch.float64)
        raw.append(step_weight(kind, plan.noise, sigma, sigma_next))
    flat = normalise_weights(kind, torch.cat(raw)).float()
    return list(torch.split(flat, [len(weights) for weights in raw]))
