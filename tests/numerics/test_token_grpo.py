"""The token loss against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.base import LossTerms
from rlvid.algorithms.token_grpo import TokenBatch, token_grpo_loss, token_log_prob, token_weights
from rlvid.config.enhancement import TokenGrpoConfig

# Two answers of one group: one token, then three; a place of prompt before, padding behind.
MASK = torch.tensor([[False, True, False, False, False], [False, True, True, True, False]])


def batch_of(
    *,
    advantage: tuple[float, ...] = (1.0, -1.0),
    ratios: Tensor | None = None,
    policy: Tensor | None = None,
    aggregation: str = "token",
    **fields: Any,
) -> tuple[TokenBatch, Tensor]:
    """A batch in float64, and the policy's log-probs, whose ratios [2, 5] are `ratios`."""
    policy = torch.full(MASK.shape, -1.5, dtype=torch.float64) if policy is None else policy
    ratios = torch.ones(MASK.shape, dtype=torch.float64) if ratios is None else ratios
    trained = fields.pop("trained", torch.ones(2, dtype=torch.bool))
    weight = token_weights(MASK, trained, [0, 0], aggregation=aggregation, max_tokens=10)
    batch = TokenBatch(
        input_ids=torch.zeros(2, 6, dtype=torch.int64),
        attention_mask=torch.ones(2, 6, dtype=torch.int64),
        answer_mask=MASK,
        behaviour_log_prob=torch.where(MASK, policy - ratios.log(), 0.0),
        advantage=torch.tensor(advantage, dtype=torch.float64),
        trained=trained,
        token_weight=weight.double(),
        **fields,
    )
    return batch, policy


def loss_of(batch: TokenBatch, policy: Tensor, **config: Any) -> LossTerms:
    return token_grpo_loss(policy, batch, TokenGrpoConfig(**{"kl_coefficient": 0.0, **config}))


def ratios_of(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


MIXED = ratios_of((9.0, 1.5, 9.0, 9.0, 9.0), (9.0, 0.5, 1.1, 1.5, 9.0))
"""Clip range 0.2, advantages 1 and -1:

first answer   max(-1.5, -1.2) = -1.2 clipped above
second         max(0.5, 0.8) = 0.8 clipped below; 1.1; max(1.5, 1.2) = 1.5, the wrong way, unclipped
"""


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token", (-1.2 + 0.8 + 1.1 + 1.5) / 4),
        ("sequence", (-1.2 + (0.8 + 1.1 + 1.5) / 3) / 2),
        ("constant", (-1.2 + 0.8 + 1.1 + 1.5) / 10 / 2),
    ],
)
def test_loss_of_two_answers_by_hand(aggregation: str, expected: float) -> None:
    """The mean over rows of the learner: loss_sum / num_rows."""
    batch, policy = batch_of(ratios=MIXED, aggregation=aggregation)
    terms = loss_of(batch, policy)
    assert terms.num_rows == 2
    # The weights are float32, so 1/3 is short of digits.
    assert float(terms.loss_sum) / 2 == pytest.approx(expected, abs=1e-7)
    assert float(terms.sums["clip_frac"]) == pytest.approx(1.0 + 1 / 3)
    assert float(terms.maxima["ratio_max"]) == pytest.approx(1.5)
    assert float(terms.minima["ratio_min"]) == pytest.approx(0.5)


def test_gradient_of_two_answers_by_hand() -> None:
    """d loss / d log-prob is -A r w where unclipped and 0 where clipped; w = 2 / 4 here."""
    batch, policy = batch_of(ratios=MIXED)
    policy = policy.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(batch, policy).loss_sum, policy)
    expected = ratios_of((0.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.5 * 1.1, 0.5 * 1.5, 0.0))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0.0)


def test_clip_higher_moves_the_upper_bound_alone() -> None:
    """Ratio 1.25: clipped at 1.2, not at 1.28. Below, 0.75 stays clipped at 0.8."""
    ratios = ratios_of((1.0, 1.25, 1.0, 1.0, 1.0), (1.0, 0.75, 0.75, 0.75, 1.0))
    batch, policy = batch_of(ratios=ratios)
    lower = loss_of(batch, policy, clip_high=0.2).loss_sum
    higher = loss_of(batch, policy, clip_high=0.28).loss_sum
    assert float(lower) == pytest.approx(0.5 * (-1.2 + 3 * 0.8), rel=1e-12)
    assert float(higher) == pytest.approx(0.5 * (-1.25 + 3 * 0.8), rel=1e-12)


def test_k3_and_its_gradient_by_hand() -> None:
    """q = log 2 on one token: k3 = 2 - log 2 - 1, and d k3 / d policy = 1 - exp(q) = -1."""
    batch, policy = batch_of(advantage=(0.0, 0.0))
    policy = policy.clone().requires_grad_()
    reference = policy.detach().clone()
    reference[0, 1] += math.log(2.0)
    batch = replace(batch, reference_log_prob=reference)
    terms = loss_of(batch, policy, kl_coefficient=0.1)
    (gradient,) = torch.autograd.grad(terms.loss_sum, policy)
    assert float(terms.loss_sum.detach()) == pytest.approx(
        0.5 * 0.1 * (1.0 - math.log(2.0)), rel=1e-12
    )
    assert float(gradient[0, 1]) == pytest.approx(0.5 * 0.1 * -1.0, rel=1e-12)
    assert float(gradient.abs().sum()) == pytest.approx(0.05, rel=1e-12)


def test_k3_has_the_mean_of_the_kl() -> None:
    """Summed over the tokens a policy draws, with their probabilities, k3 is KL(policy || ref)."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 7, generator=generator, dtype=torch.float64).log_softmax(1)
    q = reference - policy
    expected = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * (torch.expm1(q) - q)).sum(), expected)


def test_before_the_first_update_ratio_is_one_and_kl_zero_exactly() -> None:
    batch, _ = batch_of()
    policy = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(0))
    batch = replace(
        batch,
        behaviour_log_prob=torch.where(MASK, policy, 0.0),
        reference_log_prob=torch.where(MASK, policy, 0.0),
    )
    terms = loss_of(batch, policy, kl_coefficient=1.0)
    assert float(terms.maxima["ratio_deviation_max"]) == 0.0
    assert float(terms.sums["kl"]) == 0.0
    assert float(terms.sums["ratio"]) == pytest.approx(2.0)


def test_prompt_and_padding_have_no_value_no_metric_and_no_gradient() -> None:
    """Garbage where no token of an answer is: exp of it would be infinite, and 0 * inf is NaN."""
    batch, policy = batch_of(ratios=MIXED)
    wild = torch.where(MASK, policy, 1e300).requires_grad_()
    batch = replace(
        batch,
        behaviour_log_prob=torch.where(MASK, batch.behaviour_log_prob, -1e300),
        reference_log_prob=torch.where(MASK, policy, 1e300),
    )
    terms = loss_of(batch, wild, kl_coefficient=0.5)
    (gradient,) = torch.autograd.grad(terms.loss_sum, wild)
    assert float(terms.loss_sum.detach()) == pytest.approx(
        float(loss_of(*batch_of(ratios=MIXED)).loss_sum)
    )
    assert float(gradient[~MASK].abs().max()) == 0.0
    assert all(math.isfinite(float(value)) for value in terms.sums.values())
    assert float(terms.maxima["ratio_max"]) == pytest.approx(1.5)


def test_an_untrained_answer_teaches_nothing_and_does_not_dilute() -> None:
    """Its tokens are no part of the group's mean either: the other's one token counts whole."""
    trained = torch.tensor([True, False])
    batch, policy = batch_of(ratios=MIXED, trained=trained)
    policy = policy.clone().requires_grad_()
    terms = loss_of(batch, policy)
    (gradient,) = torch.autograd.grad(terms.loss_sum, policy)
    assert terms.num_rows == 1
    assert float(terms.loss_sum.detach()) == pytest.approx(-1.2, rel=1e-12)
    assert float(gradient[1].abs().max()) == 0.0


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_chunks_add_up_to_the_whole(aggregation: str) -> None:
    """Weights are of whole groups, so one batch of 2 and two of 1 give the same sums."""
    batch, policy = batch_of(ratios=MIXED, aggregation=aggregation)
    whole = loss_of(batch, policy)
    parts = []
    for row in range(2):
        rows = slice(row, row + 1)
        fields = ("input_ids", "attention_mask", "answer_mask", "behaviour_log_prob", "advantage")
        cut: dict[str, Any] = {name: getattr(batch, name)[rows] for name in fields}
        chunk = replace(
            batch, **cut, trained=batch.trained[rows], token_weight=batch.token_weight[rows]
        )
        parts.append(loss_of(chunk, policy[rows]))
    assert float(sum(part.loss_sum for part in parts)) == pytest.approx(float(whole.loss_sum))
    for name, value in whole.sums.items():
        assert float(sum(part.sums[name] for part in parts)) == pytest.approx(float(value))


def test_groups_of_unlike_length_count_the_same_by_token() -> None:
    """A group of long answers is one group: tokens are weighed within it, not across groups."""
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[:2, 2:] = False
    trained = torch.ones(4, dtype=torch.bool)
    weight = token_weights(mask, trained, [0, 0, 1, 1], aggregation="token", max_tokens=8)
    assert float(weight[:2].sum() * 2) == pytest.approx(float(weight[2:].sum() * 8))


def test_temperature_is_part_of_the_distribution() -> None:
    logits = torch.tensor([[2.0, 0.0]])
    target = torch.tensor([0])
    assert float(token_log_prob(logits, target)) == pytest.approx(-math.log1p(math.exp(-2.0)))
    halved = token_log_prob(logits, target, temperature=2.0)
    assert float(halved) == pytest.approx(-math.log1p(math.exp(-1.0)))


def test_what_cannot_be_weighed_is_refused() -> None:
    batch, policy = batch_of()
    with pytest.raises(ValueError, match="needs reference_log_prob"):
        loss_of(batch, policy, kl_coefficient=0.1)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="without tokens"):
        token_weights(
            nothing, torch.ones(1, dtype=torch.bool), [0], aggregation="token", max_tokens=1
        )
