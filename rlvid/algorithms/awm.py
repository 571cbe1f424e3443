r"""Advantage-weighted matching: policy gradient with the loss of pre-training (arXiv:2509.25050).

The paper shows that the policy gradient of denoising steps is score matching with noisy targets,
and puts the noiseless target in its place: minus the flow-matching error of a final sample, noised
at will, stands for its log-probability, and GRPO's clipped ratio is built on that:

    log p  =  -w(sigma) || v - (noise - clean) ||^2  / num_elements
    L      =  max(-A r, -A clip(r, 1 - c, 1 + c)),    r = exp(log p - log p of the behaviour)

On-policy r = 1, and the gradient is A w times that of flow matching: a good sample is fitted, a bad
one pushed away. The second has no bound of its own, so clip range and pull matter.

The paper's equation numbers were NOT FOUND; the forms are those of the released code
(github.com/scxue/advantage_weighted_matching). Its configurations: generalised Huber with power
0.25, A = 5 clipped and divided by 5, clip range 1, six noise levels a sample, the pull
`velocity_distance` to the first policy (3e-3 for GenEval, 1e-4 for PickScore) and to the old policy
(1), which follows by `old_policy.AWM_RAMP`. Notes on the paper say that it reports uniform weights
as best.

Letters: N rows, each a rollout at one noise level; C F H W latents.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlvid.algorithms.ratio import clipped_policy_loss

MatchingWeight = Literal["uniform", "sigma", "sigma_squared", "huber", "generalised_huber"]

SMALLEST_SQUARE = 1e-10
"""Added to an error before its root, whose gradient at 0 is infinite; the released code's."""


def matching_log_prob(
    velocity: Tensor,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    *,
    weight: MatchingWeight = "uniform",
    power: float = 0.25,
) -> Tensor:
    r"""Return what stands for the log-probability of `clean`, [N], a mean over elements.

    With e = mean (v - (noise - clean))^2 and s = 1e-10,

        uniform            -e
        sigma              -sigma e
        sigma_squared      -sigma^2 e
        huber              -sigma (sqrt(e + s) - sqrt(s))
        generalised_huber  -sigma ((e + s)^p - s^p) / p

    A mean over elements, as everywhere in flow-matching RL: the ratio is *tempered*
    (`rlvid.algorithms.ratio`). Rows are averaged in float64, so that a ratio near 1 is not noise.

    Args:
        velocity: [N, C, F, H, W] at add_noise(clean, noise, sigma); for a ratio both policies must
            see the same noise and sigma.
        clean, noise: [N, C, F, H, W].
        sigma: [N].
        power: p, in (0, 1].
    """
    squared = (velocity - (noise - clean)).square().flatten(1)
    error = squared.mean(dim=1, dtype=torch.float64)
    level = sigma.double()
    if weight == "uniform":
        log_prob = -error
    elif weight == "sigma":
        log_prob = -level * error
    elif weight == "sigma_squared":
        log_prob = -level.square() * error
    else:
        if not 0.0 < power <= 1.0:
            raise ValueError(f"awm: power: expected in (0, 1], got {power}.")
        p = 0.5 if weight == "huber" else power
        factor = 1.0 if weight == "huber" else 1.0 / power
        log_prob = -level * factor * ((error + SMALLEST_SQUARE) ** p - SMALLEST_SQUARE**p)
    return log_prob.to(velocity.dtype)


def awm_loss(
    log_prob: Tensor, behaviour_log_prob: Tensor, advantage: Tensor, *, clip_range: float
) -> tuple[Tensor, Tensor]:
    """Return the loss [N] and which rows are clipped [N] bool.

    Args:
        log_prob: [N] of the policy, with gradient, from `matching_log_prob`.
        behaviour_log_prob: [N] of the policy at the start of the update, at the same noise and
            sigma; in the first update on the rows it is `log_prob.detach()`, and the ratio is 1.
        advantage: [N].
        clip_range: c.
    """
    ratio = (log_prob - behaviour_log_prob.detach()).exp()
    return clipped_policy_loss(ratio, advantage, clip_range)
