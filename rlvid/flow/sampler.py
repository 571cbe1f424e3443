"""Sampling a group under a step plan, and plain ODE sampling for evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvid.flow.branches import sample_branches
from rlvid.flow.plan_steps import RecordedStep, noisy_step, sigma_rows
from rlvid.flow.sde import euler_step
from rlvid.records import StepPlan

VelocityFunction = Callable[[Tensor, Tensor], Tensor]
"""(latents [B, C, F, H, W], sigma [B]) -> velocity [B, C, F, H, W] float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSample:
    """The rollouts of one group, stacked."""

    latents: Tensor
    """[G, C, F, H, W] float32, the clean end."""
    trained_latents: Tensor
    """[G, S, C, F, H, W] state before each trained step; S is `plan.num_recorded`."""
    trained_next_latents: Tensor
    """[G, S, C, F, H, W]."""
    behaviour_mean: Tensor
    """[G, S, C, F, H, W] float32."""
    behaviour_log_prob: Tensor
    """[G, S] float32, summed over elements, in nats."""
    num_forwards: int
    """Latents handed to `velocity`; with guidance the transformer saw twice as many."""


def initial_noise(seed: int, shape: Sequence[int]) -> Tensor:
    """Return standard normal [*shape] float32 on the CPU: the same on every device and batch."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def sample_ode(velocity: VelocityFunction, latents: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Run Euler steps from latents [B, C, F, H, W] at sigmas[0] to sigmas[-1]."""
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        rows, rows_next = sigma_rows(sigma, latents), sigma_rows(sigma_next, latents)
        latents = euler_step(velocity(latents, rows), latents, rows, rows_next)
    return latents


@torch.no_grad()
def sample_group(
    velocity: VelocityFunction,
    plan: StepPlan,
    *,
    noise_seeds: Sequence[int],
    step_seeds: Sequence[int],
    latent_shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> GroupSample:
    """Sample the G rollouts of a group, doing once what its rollouts share.

    Rollouts of one initial noise are equal up to the first stochastic step, and so is the velocity
    there; in a tree they part only where it branches. So the batch of a step has one row per
    distinct state (`plan.nodes_before`). Where rollouts have steps of their own, the trajectories
    that they leave are run first, by themselves. `rlvid.algorithms.batch.forward_batches` gives the
    learner the same batches.

    Args:
        noise_seeds: [G]; equal seeds share their noise, as `plan.noise_index` says.
        step_seeds: [G], one generator per rollout, so batching does not change the draw.
        latent_shape: (C, F, H, W).
        dtype: of the stored trained states. They are rounded to it before the velocity and the
            log-probability are computed, so the learner scores the very values that were sampled.
    """
    group_size = len(noise_seeds)
    distinct = _distinct_noises(plan, noise_seeds, step_seeds)
    generators = [torch.Generator().manual_seed(seed) for seed in step_seeds]
    latents = torch.stack([initial_noise(seed, latent_shape) for seed in distinct]).to(device)
    if plan.own_steps:
        videos, step, forwards = sample_branches(velocity, plan, latents, generators, dtype)
        return _group_sample(videos, [step], dtype, forwards)
    recorded: list[RecordedStep] = []
    num_forwards = 0
    for j in range(plan.num_steps):
        is_trained = j in plan.trained_steps
        if is_trained:
            latents = latents.to(dtype).float()
        sigma = sigma_rows(plan.sigmas[j], latents)
        predicted = velocity(latents, sigma)
        num_forwards += latents.shape[0]
        nodes = plan.nodes_after(j, group_size)
        if nodes != latents.shape[0]:
            parents = _node_of(_leaders(nodes, group_size), latents.shape[0], group_size).to(device)
            latents, predicted = latents[parents], predicted[parents]
            sigma = sigma_rows(plan.sigmas[j], latents)
        sigma_next = sigma_rows(plan.sigmas[j + 1], latents)
        if j not in plan.stochastic_steps:
            latents = euler_step(predicted, latents, sigma, sigma_next)
            continue
        step_noise = _step_noise(plan, j, generators, latent_shape).to(device)
        stored = dtype if is_trained else torch.float32
        taken = noisy_step(predicted, latents, plan, j, step_noise, stored)
        if is_trained:
            rows = _node_of(range(group_size), nodes, group_size).to(device)
            recorded.append(
                (latents[rows], taken.next_latents[rows], taken.mean[rows], taken.log_prob[rows])
            )
        latents = taken.next_latents
    if latents.shape[0] != group_size:
        latents = latents[_node_of(range(group_size), latents.shape[0], group_size).to(device)]
    return _group_sample(latents, recorded, dtype, num_forwards)


def _leaders(num_nodes: int, group_size: int) -> list[int]:
    """Return the first rollout of each node."""
    return [-(-node * group_size // num_nodes) for node in range(num_nodes)]


def _node_of(rollouts: Sequence[int], num_nodes: int, group_size: int) -> Tensor:
    """Return the node [len(rollouts)] int64 that each rollout is in."""
    return torch.tensor([rollout * num_nodes // group_size for rollout in rollouts])


def _step_noise(
    plan: StepPlan, step: int, generators: Sequence[torch.Generator], shape: Sequence[int]
) -> Tensor:
    """Draw the noise [nodes, *shape] of a stochastic step, by the first rollout of each node.

    Where a tree branches with a scale, children of one state share a part of it, which the first
    rollout of that state draws; each child's noise is standard normal by itself.
    """
    size = len(generators)
    before, after = plan.nodes_before(step, size), plan.nodes_after(step, size)
    leaders = _leaders(after, size)
    is_shared = plan.branch_scale is not None and after > before

    def drawn(rollout: int) -> Tensor:
        return torch.randn(tuple(shape), generator=generators[rollout])

    if not is_shared:
        return torch.stack([drawn(leader) for leader in leaders])
    assert plan.branch_scale is not None, "only a scale makes the noise shared"
    shared = torch.stack([drawn(leader) for leader in _leaders(before, size)])
    own = torch.stack([drawn(leader) for leader in leaders])
    mixed = shared[_node_of(leaders, before, size)] + plan.branch_scale * own
    return mixed / math.sqrt(1.0 + plan.branch_scale**2)


def _distinct_noises(
    plan: StepPlan, noise_seeds: Sequence[int], step_seeds: Sequence[int]
) -> list[int]:
    """Return the seed of each noise index; ValueError where seeds and plan disagree."""
    group_size = len(noise_seeds)
    if len(step_seeds) != group_size:
        raise ValueError(
            f"sample_group: step_seeds: expected {group_size} seeds, one per rollout as in "
            f"noise_seeds, got {len(step_seeds)}"
        )
    by_index: dict[int, int] = {}
    for i, seed in enumerate(noise_seeds):
        known = by_index.setdefault(plan.noise_index(i, group_size), seed)
        if known != seed:
            raise ValueError(
                f"sample_group: noise_seeds[{i}]: expected {known}, which plan.noise_index shares "
                f"with it, got {seed}. Derive the noise seed from (prompt, step, noise index)."
            )
    if len(by_index) != plan.num_noises:
        raise ValueError(
            f"sample_group: plan.num_noises: expected at most group size {group_size}, "
            f"got {plan.num_noises}"
        )
    return [by_index[index] for index in range(plan.num_noises)]


def _group_sample(
    latents: Tensor,
    recorded: Sequence[RecordedStep],
    dtype: torch.dtype,
    num_forwards: int,
) -> GroupSample:
    if not recorded:
        empty = latents.new_zeros((latents.shape[0], 0, *latents.shape[1:]))
        return GroupSample(
            latents=latents,
            trained_latents=empty.to(dtype),
            trained_next_latents=empty.to(dtype),
            behaviour_mean=empty,
            behaviour_log_prob=latents.new_zeros((latents.shape[0], 0)),
            num_forwards=num_forwards,
        )
    before, after, means, log_probs = zip(*recorded, strict=True)
    return GroupSample(
        latents=latents,
        trained_latents=torch.stack(before, dim=1).to(dtype),
        trained_next_latents=torch.stack(after, dim=1).to(dtype),
        behaviour_mean=torch.stack(means, dim=1),
        behaviour_log_prob=torch.stack(log_probs, dim=1),
        num_forwards=num_forwards,
    )
