"""Before the first update the learner's policy is the behaviour policy, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from rlvid.algorithms.batch import (
    all_forwards,
    forward_batches,
    needed_forwards,
    select_forward,
)
from rlvid.algorithms.grpo import Grpo
from rlvid.config import AlgorithmConfig, KlConfig
from rlvid.flow.sde import NOISE_SCHEDULES
from rlvid.records import LearnerBatch, RolloutGroup

SampleGroup = Callable[..., RolloutGroup]
ToBatch = Callable[..., LearnerBatch]
KINDS = ["all", "fraction", "window", "random", "isotemporal", "branch"]
"""The last one sets its own initial noises."""


def replayed(network: nn.Module, batch: LearnerBatch) -> torch.Tensor:
    """Velocities [U, ...] in the batches of the rollout."""
    return torch.cat(
        [network(batch.latents[rows], batch.sigma[rows]) for rows in forward_batches(batch)]
    )


def assert_on_policy(network: nn.Module, batch: LearnerBatch, **config: Any) -> None:
    velocity = replayed(network, batch)
    terms = Grpo().loss(
        batch,
        velocity,
        config=AlgorithmConfig(kl=KlConfig(kind="reference"), **config),
        reference_velocity=velocity.detach().clone(),
    )
    assert float(terms.maxima["ratio_deviation_max"]) == 0.0
    assert float(terms.maxima["log_prob_drift_max"]) == 0.0
    assert float(terms.sums["kl"]) == 0.0
    assert float(terms.sums["approx_kl"]) == 0.0


@pytest.mark.parametrize(
    ("kind", "initial"),
    [*((kind, "shared") for kind in KINDS), *((kind, "independent") for kind in KINDS[:-1])],
)
def test_ratio_is_exactly_one_and_kl_zero(
    network: nn.Module, sample: SampleGroup, to_batch: ToBatch, kind: str, initial: str
) -> None:
    """Exact, with attention and convolution: any residue is a rollout and a replay that differ."""
    plan = {"kind": kind, "num_steps": 2} if kind in ("window", "random") else {"kind": kind}
    group = sample(network, step_plan=plan, initial_noise=initial)
    assert_on_policy(network, to_batch(group))


@pytest.mark.parametrize("between", ["sde", "ode"])
@pytest.mark.parametrize("splits", [(0, 3), (2,), (1, 2)])
def test_ratio_is_exactly_one_in_a_tree(
    network: nn.Module,
    sample: SampleGroup,
    to_batch: ToBatch,
    splits: tuple[int, ...],
    between: str,
) -> None:
    """A node is forwarded once, in a batch of its depth, by rollout and learner alike."""
    plan = {"kind": "tree", "split_steps": splits, "between": between}
    group = sample(network, step_plan=plan, num_denoising_steps=6)
    batch = to_batch(group)
    assert_on_policy(network, batch)
    expected = [group.plan.nodes_before(j, 4) for j in group.plan.trained_steps]
    assert [rows.numel() for rows in forward_batches(batch)] == expected


def test_ratio_is_exactly_one_where_a_trajectory_branches_at_each_step(
    network: nn.Module, sample: SampleGroup, to_batch: ToBatch
) -> None:
    """One forward serves the branches of a step, in rollout and learner alike."""
    plan = {"kind": "branch", "branch_at": "each", "range_frac": (0.2, 0.4)}
    group = sample(network, step_plan=plan)
    batch = to_batch(group)
    assert_on_policy(network, batch)
    assert [rows.tolist() for rows in forward_batches(batch)] == [[0], [2]]
    assert batch.forward_row.tolist() == [0, 0, 1, 1]
    assert batch.advantage.tolist() == [1.0, -1.0, 0.5, -0.5]
    first, second = group.plan.trained_steps
    expected = torch.tensor([group.plan.sigmas[j] for j in (first, first, second, second)])
    assert torch.equal(batch.sigma, expected)


def test_rows_of_a_step_stand_together(
    network: nn.Module, sample: SampleGroup, to_batch: ToBatch
) -> None:
    """Rollouts are ordered by noise, rows by step: two noises, two steps, and one branch here."""
    group = sample(network, step_plan={"kind": "branch", "range_frac": (0.2, 0.3)})
    assert (group.plan.num_noises, group.plan.trained_steps) == (2, (2,))
    mixed = replace(group.plan, own_steps=(2, 3, 2, 3), trained_steps=(2, 3))
    batch = to_batch(replace(group, plan=mixed))
    states = torch.stack([rollout.trained_latents[0] for rollout in group.rollouts])
    assert torch.equal(batch.latents, states[[0, 2, 1, 3]])
    assert batch.advantage.tolist() == [1.0, 0.5, -1.0, -0.5]
    assert [rows.tolist() for rows in forward_batches(batch)] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("ratio", ["plain", "guard"])
@pytest.mark.parametrize("schedule", sorted(NOISE_SCHEDULES))
def test_ratio_is_exactly_one_for_every_noise(
    network: nn.Module, sample: SampleGroup, to_batch: ToBatch, schedule: str, ratio: str
) -> None:
    """Guard's correction must vanish too: the means agree bit for bit."""
    group = sample(
        network, noise_schedule=schedule, eta=0.7, step_plan={"kind": "random", "num_steps": 3}
    )
    assert_on_policy(network, to_batch(group), ratio=ratio)


def test_ratio_is_exactly_one_with_states_stored_in_bfloat16(
    network: nn.Module, sample: SampleGroup, to_batch: ToBatch
) -> None:
    """Rounding happens before scoring; half the storage costs no exactness."""
    group = sample(network, dtype=torch.bfloat16, step_plan={"kind": "random", "num_steps": 3})
    assert_on_policy(network, to_batch(group))


def test_masked_rollouts_do_not_change_the_others(
    network: nn.Module, sample: SampleGroup, to_batch: ToBatch
) -> None:
    """They stay in the forward, since a smaller batch may round differently, but earn no loss."""
    group = sample(network, initial_noise="independent")
    batch = to_batch(group, trained=(True, False, True, True))
    assert_on_policy(network, batch)
    velocity = replayed(network, batch).detach().requires_grad_()
    terms = Grpo().loss(batch, velocity, config=AlgorithmConfig())
    terms.loss_sum.backward()
    assert terms.num_rows == 3
    assert velocity.grad is not None
    assert velocity.grad[1].abs().max() == 0.0
    assert velocity.grad[0].abs().max() > 0.0


def test_forwards_that_train_nothing_can_be_left_out(
    network: nn.Module, sample: SampleGroup, to_batch: ToBatch
) -> None:
    """The same loss and the same gradient without them, up to the rounding of other batches."""
    group = sample(network, step_plan={"kind": "random", "num_steps": 3})
    batch = to_batch(group, trained=(True, False, True, False))
    found = []
    for [rows] in (all_forwards(batch), needed_forwards(batch)):
        part = select_forward(batch, rows)
        network.zero_grad()
        terms = Grpo().loss(
            part,
            network(part.latents[part.unique_rows], part.sigma[part.unique_rows]),
            config=AlgorithmConfig(),
        )
        terms.loss_sum.backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        found.append((rows.tolist(), terms.num_rows, gradient))
    (every, num_rows, gradient), (needed, num_needed, other) = found
    assert (every, num_rows) == ([0, 4, 5, 6, 7, 8, 9, 10, 11], 6)
    assert (needed, num_needed) == ([0, 4, 6, 8, 10], 6)
    torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-6)
    nothing = to_batch(group, trained=(False,) * 4)
    assert [rows.tolist() for rows in needed_forwards(nothing)] == [[0]]


def test_shared_rows_are_forwarded_once(
    network: nn.Module, sample: SampleGroup, to_batch: ToBatch
) -> None:
    """Four rollouts of one noise need one forward at the first stochastic step."""
    batch = to_batch(sample(network, step_plan={"kind": "random", "num_steps": 3}))
    assert [rows.tolist() for rows in forward_batches(batch)] == [
        [0],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    assert batch.forward_row.tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_parts_of_a_batch_add_up_to_its_gradient(
    network: nn.Module, sample: SampleGroup, to_batch: ToBatch
) -> None:
    """A loss per forward, or one of all, or of slices of a forward: the same sum and gradient.

    Tolerance: float32 sums in another order, and matrix products of another batch size.
    """
    batch = to_batch(sample(network, step_plan={"kind": "random", "num_steps": 3}))
    parameter = next(network.parameters())
    config = AlgorithmConfig()

    def gradient(parts: list[torch.Tensor]) -> torch.Tensor:
        parameter.grad = None
        num_rows = 0
        for rows in parts:
            part = select_forward(batch, rows)
            velocity = network(part.latents[part.unique_rows], part.sigma[part.unique_rows])
            terms = Grpo().loss(part, velocity, config=config)
            terms.loss_sum.backward()
            num_rows += terms.num_rows
        assert num_rows == 12
        assert parameter.grad is not None
        return parameter.grad.clone()

    whole = gradient([batch.unique_rows])
    assert whole.abs().max() > 0.0
    atol = 1e-5 * float(whole.abs().max())
    per_step = gradient(forward_batches(batch))
    torch.testing.assert_close(per_step, whole, rtol=1e-4, atol=atol)
    slices = [piece for rows in forward_batches(batch) for piece in torch.split(rows, 2)]
    torch.testing.assert_close(gradient(slices), whole, rtol=1e-4, atol=atol)


def test_a_step_of_gradient_makes_the_better_rollout_likelier(
    network: nn.Module, sample: SampleGroup, to_batch: ToBatch
) -> None:
    """The sign of everything together: advantage up, log-probability up."""
    batch = to_batch(sample(network), advantage=(1.0, -1.0, 0.0, 0.0))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    Grpo().loss(batch, replayed(network, batch), config=AlgorithmConfig()).loss_sum.backward()
    optimizer.step()
    with torch.no_grad():
        velocity = replayed(network, batch)
    terms = Grpo().loss(batch, velocity, config=AlgorithmConfig(clip_range=10.0))
    assert float(terms.sums["policy_loss"]) < 0.0
