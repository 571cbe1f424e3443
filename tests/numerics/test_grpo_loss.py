"""The GRPO loss against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.base import LossTerms, metric_values
from rlvid.algorithms.grpo import Grpo
from rlvid.algorithms.kl import velocity_kl
from rlvid.config import AlgorithmConfig, KlConfig
from rlvid.flow.sde import NOISE_SCHEDULES, sde_step, step_std
from rlvid.flow.sigmas import shifted_sigmas
from rlvid.records import LearnerBatch, NoiseSettings, Prompt

SIGMAS = shifted_sigmas(20, 3.0)
SHAPE = (2, 2, 3, 3)


def rows_of(
    num_rows: int, schedule: str = "flow", *, advantage: list[float] | None = None
) -> tuple[LearnerBatch, Tensor]:
    """On-policy rows at steps 3, 4, ... in float64, and the velocity that sampled them."""
    generator = torch.Generator().manual_seed(1)
    velocity, latents, noise = (
        torch.randn(num_rows, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    sigma = torch.tensor(SIGMAS[3 : 3 + num_rows], dtype=torch.float64)
    sigma_next = torch.tensor(SIGMAS[4 : 4 + num_rows], dtype=torch.float64)
    chosen = NoiseSettings(schedule=schedule, eta=0.7, truncation=0.45, first_sigma=SIGMAS[1])
    step = sde_step(velocity, latents, sigma, sigma_next, noise=chosen, step_noise=noise)
    batch = LearnerBatch(
        prompt=Prompt(prompt_id="ball", text="a ball falls"),
        sigma=sigma,
        sigma_next=sigma_next,
        latents=latents,
        next_latents=step.next_latents,
        behaviour_mean=step.mean,
        behaviour_log_prob=step.log_prob,
        advantage=torch.tensor(advantage or [1.0] * num_rows, dtype=torch.float64),
        trained=torch.ones(num_rows, dtype=torch.bool),
        step_weight=torch.ones(num_rows, dtype=torch.float64),
        forward_row=torch.arange(num_rows),
        unique_rows=torch.arange(num_rows),
        noise=chosen,
    )
    return batch, velocity


def with_ratio(batch: LearnerBatch, ratios: list[float]) -> LearnerBatch:
    """Move the recorded log-probs so that the tempered ratios are `ratios`."""
    num_elements = math.prod(SHAPE)
    shift = torch.tensor([math.log(ratio) for ratio in ratios], dtype=torch.float64)
    return replace(batch, behaviour_log_prob=batch.behaviour_log_prob - num_elements * shift)


def loss_of(batch: LearnerBatch, velocity: Tensor, **config: Any) -> LossTerms:
    return Grpo().loss(batch, velocity, config=AlgorithmConfig(**config))


def test_loss_of_three_rollouts_by_hand() -> None:
    """Clip range 0.2, advantages 1, -1, 2, ratios 1.5, 0.5, 1.1:

    max(-1.5, -1.2) = -1.2 clipped above; max(0.5, 0.8) = 0.8 clipped below; -2.2 unclipped.
    """
    batch, velocity = rows_of(3, advantage=[1.0, -1.0, 2.0])
    terms = loss_of(with_ratio(batch, [1.5, 0.5, 1.1]), velocity, clip_range=0.2)
    assert float(terms.loss_sum) == pytest.approx(-1.2 + 0.8 - 2.2, rel=1e-12)
    assert terms.num_rows == 3
    assert float(terms.sums["clip_frac"]) == 2.0
    assert float(terms.maxima["ratio_max"]) == pytest.approx(1.5)
    assert float(terms.minima["ratio_min"]) == pytest.approx(0.5)


def test_a_wrong_way_ratio_is_not_clipped() -> None:
    """Clipping only stops going further: a good rollout made unlikely keeps its gradient.

    Advantages 1, -1 with ratios 0.5, 1.5: max(-0.5, -0.8) = -0.5 and max(1.5, 1.2) = 1.5.
    """
    batch, velocity = rows_of(2, advantage=[1.0, -1.0])
    terms = loss_of(with_ratio(batch, [0.5, 1.5]), velocity, clip_range=0.2)
    assert float(terms.loss_sum) == pytest.approx(1.0, rel=1e-12)
    assert float(terms.sums["clip_frac"]) == 0.0


def test_step_weight_multiplies_the_row() -> None:
    """W = 3 on the first of two rows with ratio 1 and advantages 1 and 2: -3 - 2."""
    batch, velocity = rows_of(2, advantage=[1.0, 2.0])
    batch = replace(batch, step_weight=torch.tensor([3.0, 1.0], dtype=torch.float64))
    assert float(loss_of(batch, velocity).loss_sum) == pytest.approx(-5.0, rel=1e-12)


def test_masked_row_has_no_loss_no_metric_and_no_kl() -> None:
    """An untrained row's KL would pull on a video nobody scored."""
    batch, velocity = rows_of(2, advantage=[1.0, 0.0])
    batch = replace(batch, trained=torch.tensor([True, False]))
    policy = velocity.clone().requires_grad_()
    config = AlgorithmConfig(kl=KlConfig(kind="reference", coefficient=1.0))
    terms = Grpo().loss(batch, policy, config=config, reference_velocity=velocity + 1.0)
    (gradient,) = torch.autograd.grad(terms.loss_sum, policy)
    assert terms.num_rows == 1
    assert float(gradient[1].abs().max()) == 0.0
    assert float(gradient[0].abs().max()) > 0.0


def test_guard_equals_plain_on_policy() -> None:
    """With ratio 1 Guard's correction is 0: the loss is equal, the gradient is plain times std."""
    batch, velocity = rows_of(3, advantage=[1.0, -0.5, 2.0])
    gradients = {}
    for ratio in ("plain", "guard"):
        policy = velocity.clone().requires_grad_()
        terms = loss_of(batch, policy, ratio=ratio)
        assert terms.loss_sum.item() == pytest.approx(-2.5, rel=1e-12)
        (gradients[ratio],) = torch.autograd.grad(terms.loss_sum, policy)
    std = step_std(batch.noise, batch.sigma, batch.sigma_next).reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(gradients["guard"], std * gradients["plain"], rtol=1e-10, atol=0.0)


def test_guard_removes_the_negative_mean_of_the_log_ratio() -> None:
    """Under the behaviour policy E[log r] = -KL; Guard adds the KL back, so its mean is 0.

    With the noise in next_latents replaced by its mean (0), the log ratio is -KL exactly.
    """
    batch, velocity = rows_of(2)
    step = sde_step(
        velocity,
        batch.latents,
        batch.sigma,
        batch.sigma_next,
        noise=batch.noise,
        next_latents=batch.behaviour_mean,
    )
    batch = replace(batch, next_latents=batch.behaviour_mean, behaviour_log_prob=step.log_prob)
    plain = loss_of(batch, velocity + 0.3)
    guard = loss_of(batch, velocity + 0.3, ratio="guard")
    assert float(plain.maxima["ratio_max"]) < 0.9999
    assert float(guard.maxima["ratio_deviation_max"]) == pytest.approx(0.0, abs=1e-12)


def test_divergence_mask_drops_only_rows_that_move_away() -> None:
    """Flow-DPPO: far and still leaving is dropped; far but returning, or near, is kept.

    Rows: (A, r) = (1, 1.5) leaving, (1, 0.5) returning, (-1, 0.5) leaving, (-1, 1.5) returning.
    """
    batch, velocity = rows_of(4, advantage=[1.0, 1.0, -1.0, -1.0])
    batch = with_ratio(batch, [1.5, 0.5, 0.5, 1.5])
    far = replace(batch, behaviour_mean=batch.behaviour_mean + 1.0)
    near = loss_of(batch, velocity, trust_region="divergence_mask")
    assert float(near.loss_sum) == pytest.approx(-1.5 - 0.5 + 0.5 + 1.5, abs=1e-12)
    masked = loss_of(far, velocity, trust_region="divergence_mask")
    assert float(masked.loss_sum) == pytest.approx(-0.5 + 1.5, rel=1e-12)
    assert float(masked.sums["clip_frac"]) == 2.0


@pytest.mark.parametrize("schedule", sorted(NOISE_SCHEDULES))
def test_closed_form_kl_is_that_of_the_two_transitions(schedule: str) -> None:
    """Against torch's kl_divergence of the Normals the log-probabilities are of."""
    batch, velocity = rows_of(3, schedule)
    other = velocity + 0.1 * torch.arange(3.0).reshape(-1, 1, 1, 1, 1)
    means = [
        sde_step(
            v,
            batch.latents,
            batch.sigma,
            batch.sigma_next,
            noise=batch.noise,
            next_latents=batch.next_latents,
        ).mean
        for v in (velocity, other)
    ]
    std = step_std(batch.noise, batch.sigma, batch.sigma_next).reshape(-1, 1, 1, 1, 1)
    if schedule == "cps":
        std = torch.full_like(std, math.sqrt(0.5))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(means[0], std), torch.distributions.Normal(means[1], std)
    )
    actual = velocity_kl(velocity, other, batch.sigma, batch.sigma_next, batch.noise)
    torch.testing.assert_close(actual, expected.flatten(1).sum(dim=1), rtol=1e-9, atol=1e-12)
    assert actual[0] == 0.0


def test_kl_is_flow_grpos_formula_for_the_reverse_sde() -> None:
    """(D / 2) (g (1 - sigma) / (2 sigma) + 1 / g)^2 ||v - v_ref||^2, arXiv:2505.05470."""
    batch, velocity = rows_of(3)
    distance = batch.sigma - batch.sigma_next
    g = 0.7 * (batch.sigma / (1.0 - batch.sigma)).sqrt()
    factor = g * (1.0 - batch.sigma) / (2.0 * batch.sigma) + 1.0 / g
    expected = 0.5 * distance * factor.square() * math.prod(SHAPE) * 0.04
    actual = velocity_kl(velocity + 0.2, velocity, batch.sigma, batch.sigma_next, batch.noise)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize(
    ("kind", "power"), [("none", 0), ("tempflow", 0), ("guard", 0), ("longcat", 2)]
)
def test_kl_is_weighted_as_its_source_does(kind: str, power: int) -> None:
    """LongCat-Video weights the KL by W^2 where the policy loss has W; the others do not."""
    batch, velocity = rows_of(1, advantage=[0.0])
    batch = replace(batch, step_weight=torch.tensor([3.0], dtype=torch.float64))
    config = AlgorithmConfig.model_validate(
        {"step_weight": kind, "kl": {"kind": "reference", "coefficient": 0.5}}
    )
    terms = Grpo().loss(batch, velocity, config=config, reference_velocity=velocity + 0.2)
    assert float(terms.sums["kl"]) > 0.0
    expected = 0.5 * 3.0**power * float(terms.sums["kl"])
    assert float(terms.loss_sum) == pytest.approx(expected, rel=1e-12)


def test_kl_without_a_reference_is_an_error() -> None:
    """A pull the recipe asks for must not silently be absent."""
    batch, velocity = rows_of(1)
    with pytest.raises(ValueError, match="reference_velocity"):
        loss_of(batch, velocity, kl={"kind": "reference"})


def test_velocity_of_the_wrong_size_is_an_error() -> None:
    """Broadcasting one velocity over all rows would train on nonsense."""
    batch, velocity = rows_of(3)
    with pytest.raises(ValueError, match="velocity"):
        loss_of(batch, velocity[:1])


def test_metrics_of_parts_combine() -> None:
    """Means are over all trained rows, extremes over all parts."""
    batch, velocity = rows_of(2)
    high = loss_of(with_ratio(batch, [1.5, 1.1]), velocity)
    low = loss_of(with_ratio(batch, [0.5, 0.9]), velocity)
    values = metric_values([high, low])
    assert values["ratio"] == pytest.approx(1.0)
    assert values["ratio_max"] == pytest.approx(1.5)
    assert values["ratio_min"] == pytest.approx(0.5)


def stale(batch: LearnerBatch) -> LearnerBatch:
    return replace(batch, is_on_policy=False)


def test_importance_weights_of_a_first_update_by_hand() -> None:
    """Cap 2, advantages 1, -1, 2, ratios to behaviour 1.5, 0.5, 4; the policy is the proximal one.

    q = 1, so nothing is clipped: -(1.5 * 1) - (0.5 * -1) - (min(4, 2) * 2) = -5.
    """
    batch, velocity = rows_of(3, advantage=[1.0, -1.0, 2.0])
    terms = loss_of(
        stale(with_ratio(batch, [1.5, 0.5, 4.0])), velocity, clip_range=0.2, importance_cap=2.0
    )
    assert float(terms.loss_sum) == pytest.approx(-5.0, rel=1e-12)
    assert float(terms.sums["importance"]) == pytest.approx(1.5 + 0.5 + 2.0, rel=1e-12)
    assert float(terms.sums["truncated_frac"]) == 1.0
    assert float(terms.sums["clip_frac"]) == 0.0


def test_importance_weights_of_a_later_update_by_hand() -> None:
    """The proximal policy had ratios 2 and 0.5 to behaviour; now they are 3 and 0.55.

    q = 1.5, 1.1; clip range 0.2, cap 1.6, advantages 1, 1: -(1.6 * 1.2) - (0.5 * 1.1).
    """
    batch, velocity = rows_of(2, advantage=[1.0, 1.0])
    batch = replace(
        stale(with_ratio(batch, [3.0, 0.55])),
        proximal_log_ratio=torch.tensor([2.0, 0.5], dtype=torch.float64).log(),
    )
    terms = loss_of(batch, velocity, clip_range=0.2, importance_cap=1.6)
    assert float(terms.loss_sum) == pytest.approx(-1.6 * 1.2 - 0.5 * 1.1, rel=1e-12)
    assert float(terms.sums["clip_frac"]) == 1.0


def test_fresh_groups_are_clipped_around_the_behaviour_policy() -> None:
    """Their proximal policy is the behaviour policy, so the cap changes no bit."""
    batch, velocity = rows_of(2, advantage=[1.0, 2.0])
    moved = with_ratio(batch, [1.5, 1.1])
    plain = loss_of(moved, velocity, clip_range=0.2)
    capped = loss_of(moved, velocity, clip_range=0.2, importance_cap=1.0)
    assert torch.equal(capped.loss_sum, plain.loss_sum)
    assert float(capped.sums["importance"]) == 2.0


def test_untruncated_weight_times_ratio_has_the_gradient_of_the_plain_ratio() -> None:
    """w q = r while nothing is clipped or cut; the proximal part must carry no gradient."""
    batch, velocity = rows_of(2, advantage=[1.0, -2.0])
    moved = stale(with_ratio(batch, [1.3, 0.8]))
    gradients = []
    for cap in (None, 10.0):
        policy = velocity.clone().requires_grad_()
        terms = loss_of(moved, policy, clip_range=0.9, importance_cap=cap)
        gradients.append(torch.autograd.grad(terms.loss_sum, policy)[0])
    assert float(gradients[0].abs().max()) > 0.0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-15)


def test_divergence_mask_of_stale_groups_looks_at_the_behaviour_policy() -> None:
    """q is 1 in a first update and could say of no row that it moves away."""
    batch, velocity = rows_of(2, advantage=[1.0, 1.0])
    shifted = replace(batch, behaviour_mean=batch.behaviour_mean + 1.0)
    terms = loss_of(
        stale(with_ratio(shifted, [1.5, 0.5])),
        velocity,
        trust_region="divergence_mask",
        divergence_threshold=1e-3,
        importance_cap=2.0,
    )
    assert float(terms.loss_sum) == pytest.approx(-0.5, rel=1e-12)
