"""Pulls towards data and other policies: by hand, and what weight 0 leaves alone."""

from __future__ import annotations

import pytest
import torch

from rlvid.algorithms.data_regulariser import (
    Direction,
    added,
    data_loss,
    disagreeing_rows,
    selective_kl,
    velocity_distance,
)


def test_weight_zero_changes_no_bit_even_beside_an_infinity() -> None:
    """0 * infinity is NaN; a term that is switched off must not be able to end a run."""
    loss = torch.tensor([0.1, 0.2], requires_grad=True)
    assert added(loss, torch.tensor([float("inf"), 1.0]), weight=0.0) is loss


def test_data_loss_by_hand() -> None:
    """Error 2 everywhere, coefficient 0.25: 1, and the gradient 0.25 * 2 * 2 / 4 elements."""
    clean = torch.full((2, 1, 1, 2, 2), 1.0)
    noise = torch.full((2, 1, 1, 2, 2), 4.0)
    velocity = torch.full((2, 1, 1, 2, 2), 5.0, requires_grad=True)
    loss = data_loss(velocity, clean, noise, coefficient=0.25)
    assert loss.tolist() == [1.0, 1.0]
    (gradient,) = torch.autograd.grad(loss.sum(), velocity)
    assert torch.equal(gradient, torch.full_like(gradient, 0.25))


def test_data_loss_of_coefficient_zero_is_an_error() -> None:
    """The forward would be paid for, and nothing learned from it."""
    rows = torch.zeros(1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="do not forward"):
        data_loss(rows, rows, rows, coefficient=0.0)


def test_velocity_distance_pulls_the_policy_and_not_the_other() -> None:
    """(3 - 1)^2 = 4 in every element; gradient 2 * 2 / 4 elements, none for the other policy."""
    velocity = torch.full((1, 1, 1, 2, 2), 3.0, requires_grad=True)
    other = torch.full((1, 1, 1, 2, 2), 1.0, requires_grad=True)
    distance = velocity_distance(velocity, other)
    assert distance.tolist() == [4.0]
    mine, theirs = torch.autograd.grad(distance.sum(), (velocity, other), allow_unused=True)
    assert torch.equal(mine, torch.ones_like(mine))
    assert theirs is None


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        ("others_high", [True, True, False, False]),
        ("main_high", [False, False, False, True]),
    ],
)
def test_rows_on_which_rewards_disagree(direction: Direction, expected: list[bool]) -> None:
    """Main reward: ranks 0, 1/3, 2/3, 1. The other, 9, 5, 1, 1: 1, 2/3 and a tie's 1/6, 1/6.

    Gaps 1, 1/3, -1/2, -5/6: the most disagreeing half one way, and quarter the other way.
    """
    main = torch.tensor([0.1, 0.2, 0.3, 0.4])
    others = torch.tensor([[9.0, 5.0, 1.0, 1.0]])
    frac = 0.5 if direction == "others_high" else 0.25
    rows = disagreeing_rows(main, others, frac=frac, direction=direction)
    assert rows.tolist() == expected


def test_agreeing_rewards_select_no_row() -> None:
    """Even where the share asks for all: rows without disagreement are left to learn."""
    main = torch.tensor([0.1, 0.2, 0.3])
    others = torch.stack([main, 10.0 * main])
    assert not disagreeing_rows(main, others, frac=1.0).any()
    assert not disagreeing_rows(main, -others, frac=0.0).any()


def test_ties_share_the_rank_between() -> None:
    """Main 5, 5: both 1/2. The other 1, 2: 0 and 1. Only the second lies above."""
    rows = disagreeing_rows(torch.tensor([5.0, 5.0]), torch.tensor([[1.0, 2.0]]), frac=1.0)
    assert rows.tolist() == [False, True]


def test_selection_does_not_depend_on_the_scale_of_a_reward() -> None:
    generator = torch.Generator().manual_seed(0)
    main, others = torch.randn(20, generator=generator), torch.randn(2, 20, generator=generator)
    rows = disagreeing_rows(main, others, frac=0.3)
    assert int(rows.sum()) == 6
    assert torch.equal(disagreeing_rows(main, others.exp(), frac=0.3), rows)


def test_unselected_rows_have_no_pull() -> None:
    kl = torch.tensor([1.0, float("inf")], requires_grad=True)
    pulled = selective_kl(kl, torch.tensor([True, False]))
    assert pulled.tolist() == [1.0, 0.0]
    (gradient,) = torch.autograd.grad(pulled.sum(), kl)
    assert gradient.tolist() == [1.0, 0.0]


def test_one_reward_cannot_disagree() -> None:
    with pytest.raises(ValueError, match="disagree"):
        disagreeing_rows(torch.zeros(3), torch.zeros(0, 3), frac=0.1)
    with pytest.raises(ValueError, match="finite"):
        disagreeing_rows(torch.zeros(3), torch.full((1, 3), float("nan")), frac=0.1)
