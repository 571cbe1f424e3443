"""Flow-DPO by hand, and the picking of pairs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.dpo import Pair, flow_dpo_loss, pair_beta, pick_pairs

NUM_ELEMENTS = 8


def noise_of(seed: int, *leading: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*leading, 2, 1, 2, 2, generator=generator, dtype=torch.float64)


SIGMA = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)


def test_policy_equal_to_its_reference_loses_log_2_with_the_exact_gradient() -> None:
    """sigmoid(0) = 1/2: the chosen one is matched, the rejected one repelled, each by beta / 2.

    d loss / d v_w = 1/2 * beta / 2 * 2 (v_w - u_w) / num_elements, and minus that for v_l.
    """
    reference = noise_of(0, 2, 3)
    velocity = reference.clone().requires_grad_()
    clean, noise = noise_of(1, 2, 3), noise_of(2, 3)
    terms = flow_dpo_loss(velocity, reference, clean, noise, SIGMA, beta=2000.0)
    assert terms.loss.tolist() == [math.log(2.0)] * 3
    assert torch.equal(terms.implicit_margin, torch.zeros(3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(terms.loss.sum(), velocity)
    matching = 1000.0 * (reference - (noise - clean)) / NUM_ELEMENTS
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).view(2, 1, 1, 1, 1, 1)
    torch.testing.assert_close(gradient, sign * matching, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("schedule", ["constant", "derived"])
def test_loss_is_that_of_the_paper(schedule: str) -> None:
    """-log sigmoid(-beta_t / 2 ((e_w - e_w_ref) - (e_l - e_l_ref))) of means of squared errors."""
    velocity, reference = noise_of(0, 2, 3), noise_of(3, 2, 3)
    clean, noise = noise_of(1, 2, 3), noise_of(2, 3)

    def errors(values: Tensor) -> Tensor:
        return (values - (noise - clean)).square().mean(dim=(2, 3, 4, 5))

    gain = errors(velocity) - errors(reference)
    beta = 3.0 if schedule == "constant" else 3.0 * (1.0 - SIGMA).square()
    logits = -beta / 2.0 * (gain[0] - gain[1])
    terms = flow_dpo_loss(
        velocity,
        reference,
        clean,
        noise,
        SIGMA,
        beta=3.0,
        schedule=schedule,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(terms.loss, -logits.sigmoid().log(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(terms.implicit_margin, logits, rtol=1e-10, atol=1e-12)


def test_derived_beta_is_diffusion_dpo_on_the_noise() -> None:
    """An error of the noise is (1 - sigma)^2 times one of the velocity: 0.5625, 0.25, 0.0625."""
    beta = pair_beta(SIGMA, beta=2.0, schedule="derived")
    assert beta.tolist() == [2.0 * 0.5625, 2.0 * 0.25, 2.0 * 0.0625]


def test_a_policy_better_at_the_chosen_one_orders_the_pair() -> None:
    clean, noise = noise_of(1, 2, 3), noise_of(2, 3)
    reference = noise_of(0, 2, 3)
    velocity = reference.clone()
    velocity[0] = (noise - clean)[0]
    terms = flow_dpo_loss(velocity, reference, clean, noise, SIGMA, beta=1.0)
    assert (terms.implicit_margin > 0.0).all()
    assert (terms.loss < math.log(2.0)).all()


def test_a_far_wrong_pair_has_a_finite_loss() -> None:
    """log(sigmoid(-2000)) taken in two steps is minus infinity."""
    clean, noise = noise_of(1, 2, 1), noise_of(2, 1)
    target = noise - clean
    velocity = torch.stack([target[0] + 2.0, target[1]]).requires_grad_()
    terms = flow_dpo_loss(velocity, target, clean, noise, SIGMA[:1], beta=1000.0)
    assert float(terms.loss.detach()) == pytest.approx(2000.0, rel=1e-12)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), velocity)
    assert gradient.isfinite().all()


def test_pairs_take_the_extremes_of_each_group() -> None:
    """Groups a, b of four and three clips: best against worst, then second against second worst."""
    rewards = torch.tensor([0.1, 0.9, 0.5, 0.3, 1.0, 2.0, 4.0])
    groups = ["a", "a", "a", "a", "b", "b", "b"]
    (first, second) = pick_pairs(rewards, groups)
    assert (first.chosen, first.rejected) == (1, 0)
    assert first.margin == pytest.approx(0.8)
    assert second == Pair(chosen=6, rejected=4, margin=3.0)
    every = pick_pairs(rewards, groups, max_pairs=None)
    assert [(pair.chosen, pair.rejected) for pair in every] == [(1, 0), (2, 3), (6, 4)]


def test_small_margins_ties_and_missing_rewards_make_no_pair() -> None:
    """A tie says nothing, and a reward that is missing is not a bad one."""
    nan = float("nan")
    rewards = torch.tensor([1.0, 1.0, nan, 2.0, 2.5, nan, nan, 7.0])
    groups = [0, 0, 0, 1, 1, 1, 2, 2]
    assert pick_pairs(rewards, groups) == (Pair(chosen=4, rejected=3, margin=0.5),)
    assert pick_pairs(rewards, groups, min_margin=0.6) == ()
    first_missing = torch.tensor([nan, 2.0, 2.5, nan])
    assert pick_pairs(first_missing, [0] * 4) == (Pair(chosen=2, rejected=1, margin=0.5),)


def test_a_constant_added_to_the_rewards_picks_the_same_pairs() -> None:
    rewards = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0, 0.0], dtype=torch.float64)
    groups = [0, 0, 0, 1, 1, 1]
    assert pick_pairs(rewards + 8.0, groups) == pick_pairs(rewards, groups)


def test_pairs_of_another_shape_are_an_error() -> None:
    """Chosen and rejected read from the wrong dimension would train on nonsense."""
    with pytest.raises(ValueError, match="chosen and rejected"):
        flow_dpo_loss(
            noise_of(0, 3), noise_of(0, 3), noise_of(1, 3), noise_of(2, 3), SIGMA, beta=1.0
        )
