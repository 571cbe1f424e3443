r"""Advantage-weighted matching: policy gradient with the loss of pre-training (arXiv:2509.25050).

The paper shows that the policy gradient of denoising steps is score matching with noisy targets,
and puts the noiseless target in its place: minus the flow-matching error of a final sample, noised
at will, stands for its log-probability, and GRPO's clipped ratio is built on that:

    log p  =  -w(sigma) || v - (noise - clean) ||^2  / num_elements
    L      =  max(-A r, -A clip(r, 1 - c, 1 + c)),    r = exp(log p - log p at the update's start)

On-policy r = 1, and the gradient is A w times that of flow matching: a good sample is fitted, a bad
one pushed away. The second has no bound of its own, so clip range and pull matter. Groups that
older weights sampled (`rollout.max_staleness`) are taken as they are, as by nft and dpo.

The paper's equation numbers were NOT FOUND; the forms are those of the released code
(github.com/scxue/advantage_weighted_matching). Its configurations: generalised Huber with power
0.25, A = 5 clipped and divided by 5, clip range 1, six noise levels a sample, the pull
`velocity_distance` to the first policy (3e-3 for GenEval, 1e-4 for PickScore) and to the old policy
(1), which follows by `old_policy.AWM_RAMP`. Notes on the paper say that it reports uniform weights
as best.

Letters: N rows, each a rollout at one noise level; C F H W latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from rlvid.algorithms.advantages import credit
from rlvid.algorithms.base import Credit, LossTerms, OtherPolicies
from rlvid.algorithms.data_regulariser import added, selective_kl, velocity_distance
from rlvid.algorithms.forward import alone, present, ramp_of, row_terms
from rlvid.algorithms.forward_batch import ForwardBatch, Units
from rlvid.algorithms.ratio import clipped_policy_loss
from rlvid.config.algorithm import AdvantageConfig, AlgorithmConfig

MatchingWeight = Literal["uniform", "sigma", "sigma_squared", "huber", "generalised_huber"]

SMALLEST_SQUARE = 1e-10
"""Added to an error before its root, whose gradient at 0 is infinite; the released code's."""


class Awm:
    """Advantage-weighted matching on scored groups: `algorithm.use: awm`."""

    is_group_local = True

    def credit(
        self,
        scores: Mapping[str, Tensor],
        weights: Mapping[str, float],
        config: AdvantageConfig,
    ) -> Credit:
        """Scores [P, G] by scorer (NaN where missing) -> advantages; see `advantages.credit`."""
        return credit(scores, weights, config)

    def other_policies(self, config: AlgorithmConfig) -> OtherPolicies:
        """Return the policies that pull; rollouts are the policy's own."""
        settings = config.awm
        return OtherPolicies(
            reference=settings.reference_weight > 0.0,
            old=ramp_of(settings.old_policy) if settings.old_weight else None,
        )

    def units(self, advantage: Tensor, trained: Tensor, config: AlgorithmConfig) -> Units:
        """Every trained rollout [G] by itself."""
        return alone(trained)

    def loss(
        self,
        batch: ForwardBatch,
        velocity: Tensor,
        *,
        config: AlgorithmConfig,
        old_velocity: Tensor | None = None,
        reference_velocity: Tensor | None = None,
    ) -> LossTerms:
        """Return `awm_loss` of the trained rows, the advantage divided by its clip, and the pulls.

        Args:
            velocity, old_velocity, reference_velocity: [N, C, F, H, W] at `batch.latents`.
        """
        settings = config.awm
        log_prob = matching_log_prob(
            velocity,
            batch.clean,
            batch.noise,
            batch.sigma,
            weight=settings.weight,
            power=settings.power,
        )
        start = log_prob.detach() if batch.start_log_prob is None else batch.start_log_prob
        advantage = batch.advantage / config.advantage.clip
        loss, cut = awm_loss(log_prob, start, advantage, clip_range=settings.clip_range)
        means = {"policy_loss": loss, "clip_frac": cut.float()}
        pulls = {
            "reference": (reference_velocity, settings.reference_weight),
            "old": (old_velocity, settings.old_weight),
        }
        for whose, (other, weight) in pulls.items():
            if weight:
                distance = velocity_distance(velocity, present(other, "awm", whose))
                means[f"{whose}_distance"] = distance
                loss = added(loss, selective_kl(distance, batch.pulled), weight=weight)
        ratio = (log_prob.detach() - start).exp()
        return row_terms(batch.trained, loss, means, ratio=ratio, log_prob=log_prob)


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
