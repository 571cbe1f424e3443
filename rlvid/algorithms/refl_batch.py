"""From a sampled group to rows whose last denoising steps are taken again, with gradient.

Letters: G rollouts of a group, N rows, C F H W latents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlvid.algorithms.flow_matching import add_noise
from rlvid.algorithms.refl import GradientPath
from rlvid.config.algorithm import ReflConfig
from rlvid.flow.sampler import initial_noise
from rlvid.records import Prompt, RolloutGroup
from rlvid.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflBatch:
    """Where the rows of one group start, and the steps they take."""

    prompt: Prompt
    start: Tensor
    """[N, C, F, H, W] float32, the state at `sigmas[0]`."""
    sigmas: tuple[float, ...]
    """Noise level of every forward, descending; after the last one the clean video is predicted."""
    num_gradient_steps: int
    """Forwards, the last ones, that keep their gradient."""
    trained: Tensor
    """[N] bool; a False row is forwarded, but not learned."""


def assemble_refl(
    group: RolloutGroup,
    trained: Tensor,
    path: GradientPath,
    config: ReflConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> ReflBatch:
    """Return the rows of the trained rollouts, in the order of their index.

    Noise follows from (recipe seed, group id, rollout), so any layout of ranks and any resume gives
    the same rows.

    Args:
        trained: [G] bool, one at least.
        path: of the group's schedule.
        seed: the recipe's.
    """
    rollouts = {rollout.index: rollout for rollout in group.rollouts}
    if trained.shape != (len(rollouts),) or not trained.any():
        raise ValueError(
            f"assemble: group {group.group_id}: expected {len(rollouts)} marks with a trained one, "
            f"got {trained.tolist()}"
        )
    last = path.last_step(group.plan.num_steps)
    first = 0 if config.start == "noise" else last + 1 - path.num_gradient_steps
    sigmas = tuple(group.plan.sigmas[first : last + 1])
    states = []
    for index in trained.nonzero()[:, 0].tolist():
        rollout = rollouts[index]
        if config.start == "noise":
            states.append(initial_noise(rollout.noise_seed, rollout.latents.shape))
            continue
        noise = initial_noise(
            derive_seed(seed, group.group_id, index, "refl"), rollout.latents.shape
        )
        clean = rollout.latents.float().cpu()[None]
        states.append(add_noise(clean, noise[None], torch.tensor([sigmas[0]]))[0])
    return ReflBatch(
        prompt=group.prompt,
        start=torch.stack(states).to(device),
        sigmas=sigmas,
        num_gradient_steps=path.num_gradient_steps,
        trained=torch.ones(len(states), dtype=torch.bool, device=device),
    )


def split_rows(batch: ReflBatch, max_rows: int) -> list[ReflBatch]:
    """Cut a batch into smaller ones of at most `max_rows` rows."""
    starts, trained = batch.start.split(max_rows), batch.trained.split(max_rows)
    return [
        replace(batch, start=start, trained=mark)
        for start, mark in zip(starts, trained, strict=True)
    ]
