"""Weights against hand-computed cases, and what they do to the loss and to its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.flow_matching import add_noise, flow_matching_loss
from rlvid.algorithms.reward_weighted import WeightKind, clip_weights, keep_best, standardise

REWARDS = torch.tensor([0.2, 0.6, 0.4, 0.4])
GROUPS = ("a", "a", "b", "b")
E2 = math.exp(-2.0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("uniform", [1.0, 1.0, 1.0, 1.0]),
        ("raw", [0.2, 0.6, 0.4, 0.4]),
        # exp((r - 0.6) / 0.2)
        ("exponential", [E2, 1.0, math.exp(-1.0), math.exp(-1.0)]),
        # 2 softmax of (1, 3), and of (2, 2)
        ("group_softmax", [2 * E2 / (1 + E2), 2 / (1 + E2), 1.0, 1.0]),
        # mean 0.4, std 0.2; the second prompt has no spread
        ("positive_advantage", [0.0, 1.0, 0.0, 0.0]),
    ],
)
def test_weights_by_hand(kind: WeightKind, expected: list[float]) -> None:
    weights = clip_weights(REWARDS, GROUPS, kind=kind, temperature=0.2, normalise=False)
    assert weights.tolist() == pytest.approx(expected, abs=1e-6)
    normalised = clip_weights(REWARDS, GROUPS, kind=kind, temperature=0.2)
    mean = sum(expected) / 4
    assert normalised.tolist() == pytest.approx([e / mean for e in expected], abs=1e-6)


def test_a_cut_off_bounds_the_largest_weight() -> None:
    weights = clip_weights(REWARDS, GROUPS, kind="exponential", temperature=0.1, max_weight=1.5)
    assert float(weights.max()) == 1.5


def test_higher_temperature_is_nearer_to_uniform() -> None:
    spreads = [
        float(clip_weights(REWARDS, GROUPS, kind="exponential", temperature=t).std())
        for t in (0.1, 1.0, 10.0)
    ]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.02


def test_keep_best_by_hand() -> None:
    assert keep_best(REWARDS, GROUPS, best_frac=0.5).tolist() == [False, True, True, False]
    assert keep_best(REWARDS, GROUPS, best_frac=0.5, min_reward=0.5).tolist() == [
        False,
        True,
        False,
        False,
    ]
    exact = keep_best(torch.arange(50.0), ("x",) * 50, best_frac=0.14)  # 7.000000000000001
    assert int(exact.sum()) == 7
    assert keep_best(REWARDS, ("x",) * 4, best_frac=0.3).tolist() == [False, True, True, False]


def test_standardise_by_hand() -> None:
    assert standardise(REWARDS, GROUPS).tolist() == pytest.approx([-1.0, 1.0, 0.0, 0.0])


def _loss(model: Tensor, weights: Tensor) -> Tensor:
    """E[w (v - u)^2] of a model that is one number, its velocity everywhere."""
    clean = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1, 1)
    noise = torch.tensor([4.0, 3.0]).view(2, 1, 1, 1, 1)
    assert add_noise(clean, noise, torch.tensor([0.5, 0.5])).flatten().tolist() == [2.5, 2.5]
    velocity = model.view(1, 1, 1, 1, 1).expand(2, 1, 1, 1, 1)
    return (weights * flow_matching_loss(velocity, clean, noise)).mean()


def test_loss_and_gradient_by_hand() -> None:
    """Targets 3 and 1, v = 0.5: losses 6.25 and 0.25; d/dv = mean of 2 w (v - target)."""
    model = torch.tensor(0.5, requires_grad=True)
    loss = _loss(model, torch.tensor([0.8, 0.4]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx((0.8 * 6.25 + 0.4 * 0.25) / 2)
    assert model.grad is not None
    assert float(model.grad) == pytest.approx((0.8 * 2 * -2.5 + 0.4 * 2 * -0.5) / 2)


def test_the_sign_pulls_towards_the_better_clip() -> None:
    """The trap of the printed equation: with it this step would go away from both targets."""
    for weights, target in ((torch.tensor([1.0, 0.0]), 3.0), (torch.tensor([0.0, 1.0]), 1.0)):
        model = torch.tensor(0.5, requires_grad=True)
        _loss(model, weights).backward()
        assert model.grad is not None
        after = 0.5 - 0.1 * float(model.grad)
        assert abs(after - target) < abs(0.5 - target)


def test_weight_zero_is_a_clip_that_was_never_there() -> None:
    model = torch.tensor(0.5, requires_grad=True)
    _loss(model, torch.tensor([2.0, 0.0])).backward()
    alone = torch.tensor(0.5, requires_grad=True)
    (alone - 3.0).square().backward()
    assert model.grad is not None
    assert alone.grad is not None
    assert torch.equal(model.grad, alone.grad)


@pytest.mark.parametrize(
    ("rewards", "kind", "message"),
    [
        (torch.tensor([0.5, float("nan")]), "raw", "1 of 2"),
        (torch.tensor([0.5, 1.5]), "raw", "in \\[0, 1\\], got 1 outside"),
        (torch.tensor([0.5, 0.5]), "positive_advantage", "no clip has a weight above 0"),
        (torch.tensor([[0.5, 0.5]]), "raw", "one for each clip"),
    ],
)
def test_refusals(rewards: Tensor, kind: WeightKind, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip_weights(rewards, ("a", "a"), kind=kind)
