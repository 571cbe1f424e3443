r"""DiffusionNFT: reinforcement learning on the forward process (arXiv:2509.16117, ICLR 2026).

No stochastic sampler and no likelihood. The final latents of any solver are noised again, and the
policy is regressed on them twice: as itself for what was good, mirrored at the old policy for what
was bad (algorithm 1, eq. 5):

    L  =  r || v+ - u ||^2  +  (1 - r) || v- - u ||^2,        u = noise - clean
    v+ =  (1 - beta) v_old + beta v,      v- = (1 + beta) v_old - beta v

At every noisy state its minimum is v_old + (2 / beta) Delta, Delta = E[r] (E[r u] / E[r] - v_old),
expectations over the rollouts that may lie behind it (theorem 3.2, eq. 3 and 4): a small beta is a
long step. With r = 1/2 everywhere it is the old policy. The learner holds the old policy and moves
it by `rlvid.algorithms.old_policy`. Rollouts are sampled and trained without guidance (section
3.3).

The text was read in a stored copy, the schedules and constants in copies of the released code.
Letters: N rows, each a rollout at one noise level; C F H W latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlvid.algorithms.advantages import credit
from rlvid.algorithms.base import Credit, LossTerms, OtherPolicies
from rlvid.algorithms.data_regulariser import added, selective_kl, velocity_distance
from rlvid.algorithms.forward import alone, present, ramp_of, row_terms
from rlvid.algorithms.forward_batch import ForwardBatch, Units
from rlvid.config.algorithm import AdvantageConfig, AlgorithmConfig
from rlvid.flow.sde import per_row

Weighting = Literal["adaptive", "none"]

SMALLEST_ERROR = 1e-5
"""Floor of the adaptive weight's mean |error|; the released code's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NftLoss:
    """The loss of some rows and what to watch."""

    loss: Tensor
    """[N] with a gradient."""
    old_distance: Tensor
    """[N] mean square of v - v_old; how far the update has gone from the sampling policy."""


class Nft:
    """DiffusionNFT on scored groups: `algorithm.use: nft`."""

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
        """Return the old policy, which samples, and the reference where it pulls."""
        return OtherPolicies(
            reference=config.nft.reference_weight > 0.0,
            old=ramp_of(config.nft.old_policy),
            samples_with_old=True,
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
        """Return `nft_loss` of the trained rows, with A_max = `advantage.clip`, and the pull.

        Args:
            velocity, old_velocity, reference_velocity: [N, C, F, H, W] at `batch.latents`.
        """
        settings, advantage_clip = config.nft, config.advantage.clip
        found = nft_loss(
            velocity,
            present(old_velocity, "nft", "old"),
            batch.clean,
            batch.noise,
            batch.sigma,
            optimality=optimality_probability(batch.advantage, advantage_clip=advantage_clip),
            beta=settings.beta,
            advantage_clip=advantage_clip,
            weighting=settings.weighting,
        )
        loss, means = found.loss, {"policy_loss": found.loss, "old_distance": found.old_distance}
        if settings.reference_weight:
            reference = present(reference_velocity, "nft", "reference")
            means["reference_distance"] = velocity_distance(velocity, reference)
            acting = selective_kl(means["reference_distance"], batch.pulled)
            loss = added(loss, acting, weight=settings.reference_weight)
        return row_terms(batch.trained, loss, means)


def optimality_probability(advantage: Tensor, *, advantage_clip: float) -> Tensor:
    """Return r = 1/2 + 1/2 clip(A / A_max, -1, 1), [N] in [0, 1] (section 3.3).

    The paper divides the centred reward by a Z_c of its choice; the released code takes the
    group-normalised advantage and A_max = 5. A rollout of advantage 0 has r = 1/2: nothing to
    learn but to stay.

    Args:
        advantage: [N], centred in its group.
        advantage_clip: A_max, in units of the advantage.
    """
    if advantage_clip <= 0.0:
        raise ValueError(f"nft: advantage_clip: expected above 0, got {advantage_clip}.")
    return 0.5 + 0.5 * (advantage / advantage_clip).clamp(-1.0, 1.0)


def implicit_velocities(
    velocity: Tensor, old_velocity: Tensor, *, beta: float
) -> tuple[Tensor, Tensor]:
    """Return v+ and v-, [N, C, F, H, W]: the policy around the old one, and its mirror image.

    Written as v_old +- beta (v - v_old), which is eq. 5's, and equal bit for bit to the old
    velocity where policy and old policy agree.
    """
    if beta <= 0.0:
        raise ValueError(f"nft: beta: expected above 0, got {beta}.")
    old = old_velocity.detach()
    step = beta * (velocity - old)
    return old + step, old - step


def nft_loss(
    velocity: Tensor,
    old_velocity: Tensor,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    *,
    optimality: Tensor,
    beta: float,
    advantage_clip: float,
    weighting: Weighting = "adaptive",
) -> NftLoss:
    r"""Return the loss of every row,

        A_max / beta  [ r E(v+) + (1 - r) E(v-) ]

    with E the regression error of a branch, mean over elements:

        adaptive   mean (x0(v) - clean)^2 / stop_gradient(mean |x0(v) - clean|)   (section 3.3)
        none       mean (v - u)^2                                                 (eq. 5)

    x0(v) - clean = sigma (u - v), so no latents are needed. The factor A_max / beta is the released
    code's: with it the unweighted gradient on-policy is A times that of flow matching, whatever
    A_max and beta.
    Without the negative branch the reward collapses (section 4.4), so there is no switch for it.

    Args:
        velocity: [N, C, F, H, W] of the policy, with gradient, at add_noise(clean, noise, sigma),
            unguided.
        old_velocity: of the old policy, same rows.
        clean: [N, C, F, H, W] final latents of the rollouts.
        noise: [N, C, F, H, W] fresh.
        sigma: [N] in (0, 1].
        optimality: [N] r, from `optimality_probability`.
        beta: 1 (GenEval) or 0.1 (OCR, several rewards) in the released configurations.
        advantage_clip: A_max of `optimality`.
    """
    outside = (optimality < 0.0) | (optimality > 1.0) | optimality.isnan()
    if outside.any():
        raise ValueError(
            f"nft: optimality: expected probabilities in [0, 1], got {int(outside.sum())} that are "
            "not. Take optimality_probability(advantage)."
        )
    target = noise - clean
    positive, negative = implicit_velocities(velocity, old_velocity, beta=beta)
    kept = _branch_error(positive, target, sigma, weighting)
    avoided = _branch_error(negative, target, sigma, weighting)
    r = optimality.to(kept.dtype)
    distance = (velocity - old_velocity).detach().square().flatten(1).mean(dim=1)
    return NftLoss(
        loss=advantage_clip / beta * (r * kept + (1.0 - r) * avoided), old_distance=distance
    )


def _branch_error(velocity: Tensor, target: Tensor, sigma: Tensor, weighting: Weighting) -> Tensor:
    """[N] error of one branch."""
    error = velocity - target
    if weighting == "none":
        return error.square().flatten(1).mean(dim=1)
    error = per_row(sigma, error) * error
    with torch.no_grad():
        scale = error.abs().flatten(1).mean(dim=1, dtype=torch.float64).clamp(min=SMALLEST_ERROR)
    return error.square().flatten(1).mean(dim=1) / scale.to(error.dtype)
