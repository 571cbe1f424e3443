"""From a sampled group and its credit to the rows the loss works on.

Rows are ordered by trained step, then by rollout: row n = s * G + g, or fewer where rollouts have
steps of their own. The rollout's batches are kept: at every step it ran one forward per distinct
state, so up to the first stochastic step one per initial noise, and later one per rollout, or per
node of a tree. A matrix product can round differently in a batch of another size, and then the
ratio is not exactly 1 on the policy that sampled; so masked rollouts stay in their forward as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlvid.records import LearnerBatch, Rollout, RolloutGroup, StepPlan


def assemble(
    group: RolloutGroup,
    advantage: Tensor,
    trained: Tensor,
    *,
    step_weights: Tensor,
    pulled: Tensor | None = None,
    device: torch.device | str = "cpu",
    is_on_policy: bool = True,
) -> LearnerBatch:
    """Return the N rows of a group.

    Letters: S trained steps of the plan.

    Args:
        advantage: [G], or [S, G] where steps have credit of their own (`tree_credit`).
        trained: [G] bool, from `Credit.trained`, or [S, G].
        pulled: [G] bool, rollouts on which the KL acts; None is all. A node of a tree goes by its
            first rollout.
        step_weights: [S], normalised over the batch (`rlvid.flow.step_weights`).
        is_on_policy: sampled with the very weights that the update starts from.
    """
    plan, rollouts = group.plan, sorted(group.rollouts, key=lambda rollout: rollout.index)
    size, num_trained = len(rollouts), len(plan.trained_steps)
    _check(group, rollouts, advantage, trained, step_weights)
    sigma = torch.tensor([plan.sigmas[j] for j in plan.trained_steps], dtype=torch.float32)
    sigma_next = torch.tensor([plan.sigmas[j + 1] for j in plan.trained_steps], dtype=torch.float32)
    places = _places(plan, size)
    forward_row, unique_rows = _shared_forwards(plan, size, places)
    position = torch.tensor([s for s, _ in places])
    member = torch.tensor([g for _, g in places])
    kept = trained.bool().cpu()
    credited = torch.where(kept, advantage.float().cpu(), 0.0)

    def by_row(values: Sequence[Tensor]) -> Tensor:
        """G tensors [recorded steps, ...] -> [N, ...] float32."""
        rows = [values[g][0 if plan.own_steps else s] for s, g in places]
        return torch.stack(rows).to(device).float()

    return LearnerBatch(
        prompt=group.prompt,
        sigma=sigma[position].to(device),
        sigma_next=sigma_next[position].to(device),
        latents=by_row([rollout.trained_latents for rollout in rollouts]),
        next_latents=by_row([rollout.trained_next_latents for rollout in rollouts]),
        behaviour_mean=by_row([rollout.behaviour_mean for rollout in rollouts]),
        behaviour_log_prob=by_row([rollout.behaviour_log_prob for rollout in rollouts]),
        advantage=credited.expand(num_trained, size)[position, member].to(device),
        trained=kept.expand(num_trained, size)[position, member].to(device),
        step_weight=step_weights.float().cpu()[position].to(device),
        forward_row=forward_row.to(device),
        unique_rows=unique_rows.to(device),
        noise=plan.noise,
        pulled=None if pulled is None else pulled.cpu()[member].to(device),
        is_on_policy=is_on_policy,
    )


def _check(
    group: RolloutGroup,
    rollouts: Sequence[Rollout],
    advantage: Tensor,
    trained: Tensor,
    step_weights: Tensor,
) -> None:
    size, num_trained = len(rollouts), len(group.plan.trained_steps)
    where = f"assemble: group {group.group_id}"
    if [rollout.index for rollout in rollouts] != list(range(size)):
        raise ValueError(
            f"{where}: rollout indices: expected 0 to {size - 1}, "
            f"got {[rollout.index for rollout in rollouts]}"
        )
    shapes = {tuple(advantage.shape), tuple(trained.shape)}
    if not shapes <= {(size,), (num_trained, size)}:
        raise ValueError(
            f"{where}: expected advantage and trained of shape ({size},) or "
            f"({num_trained}, {size}), got {tuple(advantage.shape)} and {tuple(trained.shape)}"
        )
    if step_weights.shape != (num_trained,):
        raise ValueError(
            f"{where}: step_weights: expected one per trained step, ({num_trained},), "
            f"got {tuple(step_weights.shape)}"
        )


def _places(plan: StepPlan, size: int) -> list[tuple[int, int]]:
    """Return (position of the trained step, rollout) of each row."""
    return [
        (position, g)
        for position, j in enumerate(plan.trained_steps)
        for g in range(size)
        if not plan.own_steps or plan.own_steps[g] == j
    ]


def _shared_forwards(
    plan: StepPlan, size: int, places: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Return (forward_row [N], unique_rows [U]) of a group of `size` rollouts."""
    forward_row: list[int] = []
    unique_rows: list[int] = []
    first: dict[tuple[int, int], int] = {}
    for row, (position, g) in enumerate(places):
        state = (position, g * plan.num_starts(plan.trained_steps[position], size) // size)
        if state not in first:
            first[state] = len(unique_rows)
            unique_rows.append(row)
        forward_row.append(first[state])
    return (
        torch.tensor(forward_row, dtype=torch.int64),
        torch.tensor(unique_rows, dtype=torch.int64),
    )


def all_forwards(batch: LearnerBatch) -> list[Tensor]:
    """Return the rows [int64] of all trained steps as one batch: fewer, larger forwards."""
    return [batch.unique_rows] if batch.unique_rows.numel() else []


def needed_forwards(batch: LearnerBatch) -> list[Tensor]:
    """Return `all_forwards` without those that serve no trained row; one is left at least."""
    is_needed = torch.zeros_like(batch.unique_rows, dtype=torch.bool)
    is_needed[batch.forward_row[batch.trained]] = True
    is_needed[0] |= ~is_needed.any()
    return [batch.unique_rows[is_needed]]


def forward_batches(batch: LearnerBatch) -> list[Tensor]:
    """Return, for each trained step, the rows [int64] to forward together, as the rollout did.

    Concatenated they are `unique_rows`, so velocities of all of them, in order, are [U, ...].
    """
    rows = batch.unique_rows
    if rows.numel() == 0:
        return []
    _, counts = torch.unique_consecutive(batch.sigma[rows], return_counts=True)
    return list(torch.split(rows, counts.tolist()))


def select_forward(batch: LearnerBatch, rows: Tensor) -> LearnerBatch:
    """Return the part of `batch` that the forwards of `rows` serve, for a loss of their own.

    `rows` is one of `forward_batches` or `all_forwards`, or a slice of one where memory asks for
    smaller batches.
    Velocities of `rows`, in order, are then the [U, ...] of the part.
    """
    place = torch.full((batch.sigma.shape[0],), -1, dtype=torch.int64, device=rows.device)
    place[rows] = torch.arange(rows.numel(), device=rows.device)
    forward_row = place[batch.unique_rows[batch.forward_row]]
    served = forward_row >= 0
    new_index = torch.cumsum(served, dim=0) - 1
    return replace(
        batch,
        sigma=batch.sigma[served],
        sigma_next=batch.sigma_next[served],
        latents=batch.latents[served],
        next_latents=batch.next_latents[served],
        behaviour_mean=batch.behaviour_mean[served],
        behaviour_log_prob=batch.behaviour_log_prob[served],
        advantage=batch.advantage[served],
        trained=batch.trained[served],
        step_weight=batch.step_weight[served],
        forward_row=forward_row[served],
        unique_rows=new_index[rows],
        pulled=None if batch.pulled is None else batch.pulled[served],
    )
