"""Losses of preference pairs against hand values, numeric integration and numeric gradients."""

from __future__ import annotations

import math

import pytest
import torch

from rlvid.reward_models.losses import (
    labelled_mean,
    spread_loss,
    spread_probability,
    tie_probabilities,
    ties_loss,
)

NAN = float("nan")


@pytest.mark.parametrize("k", [1.01, 2.0, 5.0, 50.0])
def test_win_tie_and_loss_are_all_there_is(k: float) -> None:
    """The log(k^2 - 1) term is what makes the three sum to 1; without it the tie is too likely."""
    difference = torch.linspace(-12.0, 12.0, 97, dtype=torch.float64)
    total = torch.stack(tie_probabilities(difference, k)).exp().sum(dim=0)
    assert torch.allclose(total, torch.ones_like(difference), atol=1e-12)


def test_tie_probability_by_hand() -> None:
    """At d = 0 and k = 5: P(A > B) = 1 / (1 + 5), so P(tie) = 1 - 2/6."""
    a_wins, tie, b_wins = tie_probabilities(torch.tensor(0.0, dtype=torch.float64), 5.0)
    assert float(a_wins.exp()) == pytest.approx(1 / 6, abs=1e-12)
    assert float(tie.exp()) == pytest.approx(4 / 6, abs=1e-12)
    assert float(b_wins.exp()) == pytest.approx(1 / 6, abs=1e-12)


def test_a_win_is_as_rao_and_kupper_say() -> None:
    """P(A > B) = e^s_A / (e^s_A + k e^s_B)."""
    s_a, s_b, k = 0.7, -0.4, 5.0
    expected = math.exp(s_a) / (math.exp(s_a) + k * math.exp(s_b))
    a_wins, _, _ = tie_probabilities(torch.tensor(s_a - s_b, dtype=torch.float64), k)
    assert float(a_wins.exp()) == pytest.approx(expected, abs=1e-12)


def test_no_ties_below_one() -> None:
    with pytest.raises(ValueError, match="k: expected a number above 1, got 1.0"):
        tie_probabilities(torch.zeros(1), 1.0)


def test_ties_loss_picks_the_label_and_skips_what_has_none() -> None:
    difference = torch.tensor([[1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    label = torch.tensor([[1.0, 0.0, -1.0, NAN]], dtype=torch.float64)
    losses = ties_loss(difference, label, 5.0)
    log_k = math.log(5.0)
    win = math.log1p(math.exp(-(1.0 - log_k)))
    loss = math.log1p(math.exp(1.0 + log_k))
    assert losses[0].tolist() == pytest.approx([win, win + loss - math.log(24.0), loss, 0.0])


def test_tie_is_cheapest_at_equal_scores() -> None:
    difference = torch.linspace(-3.0, 3.0, 61, dtype=torch.float64)[:, None]
    losses = ties_loss(difference, torch.zeros_like(difference), 5.0)
    assert int(losses.argmin()) == 30


def test_unlabelled_part_has_no_gradient() -> None:
    """NaN in a label must not reach the weights through 0 * NaN."""
    difference = torch.tensor([[0.3, 0.3]], requires_grad=True)
    loss = ties_loss(difference, torch.tensor([[1.0, NAN]]), 5.0).sum()
    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
    assert difference.grad is not None
    assert difference.grad[0, 0] != 0.0
    assert difference.grad[0, 1] == 0.0


def test_spread_probability_is_the_integral_of_two_normals() -> None:
    """P(A > B) by quadrature over A of p(A) * P(B < A)."""
    mean_a, mean_b, spread_a, spread_b = 0.4, -0.3, 0.8, 1.7
    x = torch.linspace(-12.0, 12.0, 20001, dtype=torch.float64)
    density = torch.exp(-0.5 * ((x - mean_a) / spread_a) ** 2) / (spread_a * math.sqrt(2 * math.pi))
    below = 0.5 * (1.0 + torch.erf((x - mean_b) / (spread_b * math.sqrt(2.0))))
    integral = torch.trapezoid(density * below, x)
    got = spread_probability(*(torch.tensor(v) for v in (mean_a, mean_b, spread_a, spread_b)))
    assert float(got.exp()) == pytest.approx(float(integral), abs=1e-6)


def test_spread_pulls_the_probability_to_a_half() -> None:
    """An unsure model must not be forced to tell clips apart."""
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    sure, unsure = (
        float(spread_probability(one, zero, torch.tensor(s), torch.tensor(s)).exp())
        for s in (0.1, 10.0)
    )
    assert sure > 0.999
    assert 0.5 < unsure < 0.55


def test_spread_loss_is_the_same_for_a_pair_turned_round() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 3, generator=generator)
    s, t = torch.rand(2, 4, 3, generator=generator) + 0.1
    label = torch.tensor([1.0, 0.0, -1.0]).expand(4, 3)
    assert torch.allclose(spread_loss(a, b, s, t, label), spread_loss(b, a, t, s, -label))


def test_gradients_are_those_of_the_formulae() -> None:
    """Float64 finite differences; log_ndtr and logsigmoid are where a sign is lost."""
    generator = torch.Generator().manual_seed(1)
    label = torch.tensor([[1.0, 0.0, -1.0], [NAN, 1.0, 0.0]], dtype=torch.float64)

    def draw() -> torch.Tensor:
        return torch.randn(2, 3, generator=generator, dtype=torch.float64).requires_grad_()

    difference, a, b = draw(), draw(), draw()
    s = (torch.rand(2, 3, generator=generator, dtype=torch.float64) + 0.2).requires_grad_()
    t = (torch.rand(2, 3, generator=generator, dtype=torch.float64) + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: ties_loss(d, label, 5.0), (difference,))
    assert torch.autograd.gradcheck(lambda a, b, s, t: spread_loss(a, b, s, t, label), (a, b, s, t))


def test_mean_is_over_labels_not_over_places() -> None:
    label = torch.tensor([[1.0, NAN], [NAN, NAN]])
    assert float(labelled_mean(torch.tensor([[3.0, 0.0], [0.0, 0.0]]), label)) == 3.0
    assert float(labelled_mean(torch.zeros(1, 1), torch.tensor([[NAN]]))) == 0.0
