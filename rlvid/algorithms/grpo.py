"""GRPO on denoising steps, with the parts in which its published relatives differ.

One formula covers them: per row, W times a policy loss on the tempered ratio, plus a weighted KL.
Flow-GRPO (arXiv:2505.05470), DanceGRPO (arXiv:2505.07818), Flash-GRPO (arXiv:2605.15980),
GRPO-Guard (arXiv:2510.22319), Flow-DPPO (arXiv:2606.11025) and LongCat-Video (arXiv:2510.22200) are
settings of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlvid.algorithms.advantages import credit
from rlvid.algorithms.base import Credit, LossTerms
from rlvid.algorithms.data_regulariser import selective_kl
from rlvid.algorithms.forward import present
from rlvid.algorithms.kl import velocity_kl
from rlvid.algorithms.ratio import (
    clipped_policy_loss,
    decoupled,
    guard_log_ratio,
    masked_policy_loss,
    mean_divergence,
    tempered_log_ratio,
)
from rlvid.config.algorithm import AdvantageConfig, AlgorithmConfig
from rlvid.flow.sde import SdeStep, sde_step
from rlvid.flow.step_weights import KL_WEIGHT_POWER
from rlvid.records import LearnerBatch


class Grpo:
    """Group-relative policy optimisation on stochastic denoising steps."""

    is_group_local = True

    def credit(
        self,
        scores: Mapping[str, Tensor],
        weights: Mapping[str, float],
        config: AdvantageConfig,
    ) -> Credit:
        """Scores [P, G] by scorer (NaN where missing) -> advantages; see `advantages.credit`."""
        return credit(scores, weights, config)

    def loss(
        self,
        batch: LearnerBatch,
        velocity: Tensor,
        *,
        config: AlgorithmConfig,
        reference_velocity: Tensor | None = None,
        anchor_velocity: Tensor | None = None,
    ) -> LossTerms:
        r"""Return the loss of the trained rows and what to watch.

            sum over rows of  W max(-A r, -A clip(r))  +  beta W^p KL / num_elements

        r is the tempered ratio (or Guard's), A the advantage, W `batch.step_weight`, p from
        `KL_WEIGHT_POWER`; the KL acts on rows of `batch.pulled` where that is given. The sum, not
        the mean: dividing by the trained rows of all ranks is the learner's, so that any layout
        gives the same gradient.

        With `config.importance_cap` c, a group that other weights sampled is weighted and clipped
        as decoupled PPO does (Hilton, Cobbe, Schulman, arXiv:2110.00641; AReaL, arXiv:2505.24298):

            w W max(-A q, -A clip(q)),   w = min(rho, c),   rho = proximal / behaviour,
            q = policy / proximal

        The proximal policy is the one at the start of the update; w and the proximal part of q
        carry no gradient. All three are tempered ratios, so without clip and cap w q is the r of
        above, and so is its gradient. In the first update on the rows the proximal policy is the
        policy: q = 1 in value, nothing is clipped, and its forward is this one. A divergence mask
        stays around the behaviour policy, whose mean is recorded.

        Args:
            velocity: of the policy, with gradient: [N, C, F, H, W], or [U, ...] for `unique_rows`.
            reference_velocity: of the frozen policy, same rows; needed when `config.kl` pulls, and
                otherwise only measured.
            anchor_velocity: of the moving anchor, same rows; of `kl.kind` dual alone, whose KL is
                beta KL(reference) + beta_anchor KL(anchor).
        """
        velocity = _expand(velocity, batch)
        step = sde_step(
            velocity,
            batch.latents,
            batch.sigma,
            batch.sigma_next,
            noise=batch.noise,
            next_latents=batch.next_latents,
        )
        guard = config.ratio == "guard"
        log_ratio = guard_log_ratio(step, batch) if guard else tempered_log_ratio(step, batch)
        loss, watched = _policy_loss(step, log_ratio, batch, config)
        pulls, watched_kl = _pulls(velocity, reference_velocity, anchor_velocity, batch, config)
        for pull in pulls:
            loss = loss + pull
        drift = (step.log_prob - batch.behaviour_log_prob).abs()
        return _terms(batch, loss, watched | watched_kl, log_ratio=log_ratio, drift=drift)


def _policy_loss(
    step: SdeStep, log_ratio: Tensor, batch: LearnerBatch, config: AlgorithmConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of every row without the KL, [N], and values [N] to watch."""
    ratio = log_ratio.exp()
    near, weight, rho = decoupled(log_ratio, batch, config.importance_cap)
    if config.trust_region == "clip":
        policy, cut = clipped_policy_loss(near, batch.advantage, config.clip_range)
    else:
        divergence = mean_divergence(step, batch)
        policy, cut = masked_policy_loss(
            near, batch.advantage, divergence, config.divergence_threshold, judged=ratio
        )
    loss = batch.step_weight * policy
    if weight is not None:
        loss = weight * loss
    watched = {
        "ratio": ratio,
        "clip_frac": cut.float(),
        "approx_kl": torch.expm1(log_ratio) - log_ratio,
        "policy_loss": loss,
    }
    if config.importance_cap is not None:
        watched["importance"] = torch.ones_like(ratio) if weight is None else weight
        watched["truncated_frac"] = (rho > config.importance_cap).float()
    return loss, watched


def _pulls(
    velocity: Tensor,
    reference_velocity: Tensor | None,
    anchor_velocity: Tensor | None,
    batch: LearnerBatch,
    config: AlgorithmConfig,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return what KLs add to the loss of every row, [N] each, and values [N] to watch."""
    kind = config.kl.kind
    if reference_velocity is None:
        if kind != "none":
            raise ValueError(
                f"algorithm.kl: kind {kind!r} needs velocities of the other policy: expected "
                "reference_velocity, got None"
            )
        return [], {}
    kl = _kl_per_element(velocity, _expand(reference_velocity, batch), batch)
    watched = {"kl": kl}
    if batch.pulled is not None:
        watched["pulled_frac"] = batch.pulled.float()
    if kind == "none":
        return [], watched
    weight = batch.step_weight ** KL_WEIGHT_POWER[config.step_weight]
    pulls = [config.kl.coefficient * weight * selective_kl(kl, batch.pulled)]
    if kind == "dual":
        anchor = present(anchor_velocity, "grpo", "anchor")
        anchor_kl = _kl_per_element(velocity, _expand(anchor, batch), batch)
        watched["anchor_kl"] = anchor_kl
        pulls.append(config.kl.anchor_coefficient * weight * selective_kl(anchor_kl, batch.pulled))
    return pulls, watched


def _expand(velocity: Tensor, batch: LearnerBatch) -> Tensor:
    """[U, ...] or [N, ...] -> [N, ...]."""
    num_rows, num_forwards = batch.forward_row.numel(), batch.unique_rows.numel()
    if velocity.shape[1:] != batch.latents.shape[1:] or velocity.shape[0] not in (
        num_rows,
        num_forwards,
    ):
        raise ValueError(
            f"grpo: velocity: expected [{num_rows} or {num_forwards}, "
            f"{', '.join(str(size) for size in batch.latents.shape[1:])}], "
            f"got {list(velocity.shape)}"
        )
    if velocity.shape[0] == num_forwards:
        return velocity[batch.forward_row]
    return velocity


def _kl_per_element(velocity: Tensor, reference_velocity: Tensor, batch: LearnerBatch) -> Tensor:
    """KL [N] divided by the number of elements, tempered like the ratio."""
    kl = velocity_kl(
        velocity, reference_velocity.detach(), batch.sigma, batch.sigma_next, batch.noise
    )
    return kl / batch.latents[0].numel()


def _terms(
    batch: LearnerBatch,
    loss: Tensor,
    sums: Mapping[str, Tensor],
    *,
    log_ratio: Tensor,
    drift: Tensor,
) -> LossTerms:
    """Reduce rows [N] to sums and extremes over trained rows."""
    trained = batch.trained
    log_ratio, drift = log_ratio.detach(), drift.detach()
    ratio = log_ratio.exp()

    def largest(values: Tensor) -> Tensor:
        return torch.where(trained, values, -torch.inf).amax()

    return LossTerms(
        loss_sum=torch.where(trained, loss, 0.0).sum(),
        num_rows=int(trained.sum()),
        sums={
            name: torch.where(trained, values.detach(), 0.0).sum() for name, values in sums.items()
        },
        maxima={
            "ratio_max": largest(ratio),
            "ratio_deviation_max": largest((ratio - 1.0).abs()),
            "log_prob_drift_max": largest(drift),
        },
        minima={"ratio_min": -largest(-ratio)},
        log_ratio=log_ratio,
    )
