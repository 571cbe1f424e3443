"""GRPO on the tokens of a causal language model's answers.

Unlike a denoising step's, the log-probability of a token is a plain number of nats, so ratios are
untempered and clip ranges are those of language models. Letters: N answers, T places of a sequence
that are predicted (its length less one). Everything here takes log-probabilities; no model is
called. A place is a token's if it lies in the answer: prompts and padding are masked out, in value
and in gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvid.algorithms.base import LossTerms
from rlvid.config.enhancement import TokenGrpoConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Answers ready for the loss: prompt and answer side by side, padded on the right."""

    input_ids: Tensor
    """[N, T+1] int64."""
    attention_mask: Tensor
    """[N, T+1] int64; 0 on padding."""
    answer_mask: Tensor
    """[N, T] bool; True at t where `input_ids[:, t+1]` is the answer's, its end token included."""
    behaviour_log_prob: Tensor
    """[N, T] float32, by the policy at the start of the update; 0 outside the mask."""
    advantage: Tensor
    """[N]."""
    trained: Tensor
    """[N] bool; a False row is forwarded, so that batches are the same, but not learned."""
    token_weight: Tensor
    """[N] what a token of the row counts, see `token_weights`; 0 where `trained` is False."""
    reference_log_prob: Tensor | None = None
    """[N, T] by the rewriter before training; None where no KL is wanted."""
    importance: Tensor | None = None
    """[N, T] see `truncated_importance`; None weighs every token alike."""


def token_log_prob(logits: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return log softmax(logits / temperature) of `targets`, float32, in nats.

    Sampler, behaviour, policy and reference all go through here, so they mean the same
    distribution.

    Args:
        logits: [..., V] that predict the targets.
        targets: [...] int64.
    """
    scaled = logits.float() / temperature
    chosen = scaled.gather(-1, targets[..., None]).squeeze(-1)
    return chosen - torch.logsumexp(scaled, dim=-1)


def token_weights(
    answer_mask: Tensor,
    trained: Tensor,
    group_index: Sequence[int],
    *,
    aggregation: str,
    max_tokens: int,
) -> Tensor:
    r"""Return w [N] with which the loss is  sum_i w_i sum_t l_it  over  the number of trained rows.

    With |o_i| tokens in answer i and G_g trained answers with n_g tokens in its group:

        sequence   w_i = 1 / |o_i|      mean over tokens, then answers (arXiv:2402.03300, GRPO)
        token      w_i = G_g / n_g      mean over the tokens of a group (arXiv:2503.14476, DAPO)
        constant   w_i = 1 / max_tokens, no bias by length (arXiv:2503.20783, Dr. GRPO)

    Worked out once for whole groups, before they are cut into chunks: then any cut gives the same
    gradient.

    Args:
        group_index: [N] which rows share a prompt.
        max_tokens: most tokens an answer may have.
    """
    tokens = (answer_mask.sum(dim=1) * trained).double()
    if (trained & (tokens == 0)).any():
        raise ValueError(
            "token_weights: an answer without tokens is trained: expected at least its end token. "
            "Set its `trained` to False."
        )
    if aggregation == "sequence":
        weight = 1.0 / tokens.clamp(min=1.0)
    elif aggregation == "token":
        group = torch.as_tensor(group_index, device=tokens.device)
        same = (group[:, None] == group[None, :]).double()
        weight = (same @ trained.double()) / (same @ tokens).clamp(min=1.0)
    elif aggregation == "constant":
        weight = torch.full_like(tokens, 1.0 / max_tokens)
    else:
        raise ValueError(
            f"token_weights: aggregation: expected token, sequence or constant, got {aggregation!r}"
        )
    return torch.where(trained, weight, 0.0).float()


def truncated_importance(behaviour: Tensor, sampled: Tensor, *, cap: float) -> Tensor:
    r"""Return what a token that another engine drew counts: w = min(exp(behaviour - sampled), cap).

    A server rounds otherwise than the learner, so its tokens are drawn from a slightly other
    distribution than the one whose ratio is 1. The weight takes that out of the gradient's mean;
    the cap bounds its variance (Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"; the weight is IMPALA's, arXiv:1802.01561).

    Args:
        behaviour, sampled: [N, T] log-probabilities of the same tokens before the first update, by
            learner and sampler.
    """
    return (behaviour - sampled).exp().clamp(max=cap)


def token_grpo_loss(
    policy_log_prob: Tensor, batch: TokenBatch, config: TokenGrpoConfig
) -> LossTerms:
    r"""Return the loss of the trained answers and what to watch.

        l_it = w_it max(-A_i r_it, -A_i clip(r_it, 1 - clip_low, 1 + clip_high)) + beta k3_it
        r_it = exp(policy - behaviour),  w_it = `batch.importance` or 1
        k3_it = exp(q) - q - 1,  q = reference - policy       (DeepSeekMath, arXiv:2402.03300)

    k3 estimates KL(policy || reference) without bias where the token was drawn from the policy; it
    is never negative and exactly 0 before the first update, as r is exactly 1. Other bounds above
    than below are DAPO's "clip higher" (arXiv:2503.14476). The sum, not the mean: dividing by the
    trained rows of all ranks is the learner's.

    Args:
        policy_log_prob: [N, T] with gradient; places outside the mask may hold anything finite.
    """
    mask = batch.answer_mask & batch.trained[:, None]
    policy = torch.where(mask, policy_log_prob, 0.0)
    log_ratio = policy - torch.where(mask, batch.behaviour_log_prob, 0.0)
    ratio = log_ratio.exp()
    advantage = batch.advantage[:, None]
    near = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    policy_loss = torch.maximum(-advantage * ratio, -advantage * near)
    is_clipped = ((advantage > 0.0) & (ratio > 1.0 + config.clip_high)) | (
        (advantage < 0.0) & (ratio < 1.0 - config.clip_low)
    )
    if batch.importance is not None:
        policy_loss = batch.importance * policy_loss
    loss = policy_loss
    means = {
        "ratio": ratio,
        "clip_frac": is_clipped.float(),
        "approx_kl": torch.expm1(log_ratio) - log_ratio,
    }
    if batch.importance is not None:
        means["importance"] = batch.importance
    if batch.reference_log_prob is not None:
        to_reference = torch.where(mask, batch.reference_log_prob, 0.0) - policy
        kl = torch.expm1(to_reference) - to_reference
        means["kl"] = kl
        if config.kl_coefficient:
            loss = loss + config.kl_coefficient * kl
    elif config.kl_coefficient:
        raise ValueError(
            f"token_grpo: kl_coefficient {config.kl_coefficient:g} needs reference_log_prob in the "
            "batch, got None. Score the batch with the rewriter before training, or set it to 0."
        )
    return _terms(batch, mask, loss, policy_loss, means, ratio)


def _terms(
    batch: TokenBatch,
    mask: Tensor,
    loss: Tensor,
    policy_loss: Tensor,
    means: dict[str, Tensor],
    ratio: Tensor,
) -> LossTerms:
    """Sum [N, T] over tokens with the rows' weights, and reduce what is watched.

    `means` are averaged over each answer's tokens, so that a metric over rows is one over answers.
    """
    weight = batch.token_weight[:, None]
    num_tokens = mask.sum(dim=1)
    per_token = mask / num_tokens.clamp(min=1)[:, None]
    ratio = ratio.detach()

    def largest(values: Tensor) -> Tensor:
        return torch.where(mask, values, -torch.inf).amax()

    sums = {name: (per_token * values.detach()).sum() for name, values in means.items()}
    sums["policy_loss"] = torch.where(mask, weight * policy_loss.detach(), 0.0).sum()
    sums["num_tokens"] = num_tokens.sum().float()
    return LossTerms(
        loss_sum=torch.where(mask, weight * loss, 0.0).sum(),
        num_rows=int(batch.trained.sum()),
        sums=sums,
        maxima={
            "ratio_max": largest(ratio),
            "ratio_deviation_max": largest((ratio - 1.0).abs()),
        },
        minima={"ratio_min": -largest(-ratio)},
    )
