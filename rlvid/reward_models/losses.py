r"""Losses of preference pairs, and the probabilities behind them. Pure functions.

A pair is two clips of one prompt, A and B; s_A and s_B are a model's scores of one part and
d = s_A - s_B. A label is +1 where A is preferred, -1 where B is and 0 for a tie; NaN says that
nobody labelled this part of this pair. Letters: B pairs, P parts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

A_WINS, TIE, B_WINS = 1.0, 0.0, -1.0


def tie_probabilities(difference: Tensor, k: float) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return log P(A > B), log P(tie), log P(B > A), each of the shape of `difference`.

    Bradley-Terry with ties (Rao and Kupper, 1967; used by VideoAlign, arXiv:2501.13918, k = 5):

        P(A > B) = e^{s_A} / (e^{s_A} + k e^{s_B}) = sigmoid(d - log k)
        P(tie)   = (k^2 - 1) sigmoid(d - log k) sigmoid(-d - log k)

    The three sum to 1 for every d. With k = 1 there are no ties; it must be above 1 here.

    Args:
        difference: s_A - s_B, any shape, float.
    """
    if not k > 1.0:
        raise ValueError(f"tie_probabilities: k: expected a number above 1, got {k}")
    log_k = math.log(k)
    a_wins = functional.logsigmoid(difference - log_k)
    b_wins = functional.logsigmoid(-difference - log_k)
    return a_wins, a_wins + b_wins + math.log(k * k - 1.0), b_wins


def ties_loss(difference: Tensor, label: Tensor, k: float) -> Tensor:
    r"""Return the negative log-likelihood of Bradley-Terry with ties, [B, P]; 0 where unlabelled.

    Methods 4.1: -log sigmoid(d - log k) for a win of A, and for a tie
    -log sigmoid(d - log k) - log sigmoid(-d - log k) - log(k^2 - 1).

    Args:
        difference: [B, P] s_A - s_B.
        label: [B, P] +1, 0, -1 or NaN.
    """
    a_wins, tie, b_wins = tie_probabilities(difference, k)
    chosen = torch.where(label > 0, a_wins, torch.where(label < 0, b_wins, tie))
    return torch.where(label.isnan(), torch.zeros_like(chosen), -chosen)


def spread_probability(
    mean_a: Tensor, mean_b: Tensor, spread_a: Tensor, spread_b: Tensor
) -> Tensor:
    r"""Return log P(A > B) when each score is a normal variable of its own mean and spread.

        P(A > B) = Phi((mu_A - mu_B) / sqrt(sigma_A^2 + sigma_B^2))

    The form of HPSv3's uncertainty-aware ranking (arXiv:2508.03789) as read in methods 4.2 [D]:
    the paper's exact loss was not found, so this is our reading. An uncertain clip pulls the
    probability to 1/2 instead of being forced apart.
    """
    argument = (mean_a - mean_b) / (spread_a.square() + spread_b.square()).sqrt()
    log_probability: Tensor = torch.special.log_ndtr(argument)
    return log_probability


def spread_loss(
    mean_a: Tensor, mean_b: Tensor, spread_a: Tensor, spread_b: Tensor, label: Tensor
) -> Tensor:
    r"""Return the cross-entropy of `spread_probability`, [B, P]; 0 where unlabelled.

    A tie is a target of 1/2, so its loss is -(log P(A > B) + log P(B > A)) / 2, least at equal
    means. That the model learns ties so is our reading too [D].
    """
    a_wins = spread_probability(mean_a, mean_b, spread_a, spread_b)
    b_wins = spread_probability(mean_b, mean_a, spread_b, spread_a)
    target = 0.5 * (label.nan_to_num(0.0) + 1.0)
    loss = -(target * a_wins + (1.0 - target) * b_wins)
    return torch.where(label.isnan(), torch.zeros_like(loss), loss)


def labelled_mean(losses: Tensor, label: Tensor) -> Tensor:
    """Return the mean over what is labelled; a batch without any label gives 0."""
    return losses.sum() / (~label.isnan()).sum().clamp(min=1)
