"""From a sampled group and its credit to rows of the forward process: final videos, noised again.

How a video was sampled plays no part; only its final latents are looked at. A *unit* is what shares
its noise and stays in one forward: a rollout, or for preferences a pair of them. Rows are ordered
by draw, then by unit, then by place in the unit: row n = (draw * units + unit) * unit size + place.

Letters: G rollouts of a group, M draws of a noise level, N rows, C F H W latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rlvid.algorithms.flow_matching import add_noise, sample_sigma
from rlvid.config.algorithm import ForwardConfig
from rlvid.flow.sigmas import Shift
from rlvid.records import Prompt, RolloutGroup
from rlvid.seeds import derive_seed

Units = Sequence[tuple[int, ...]]
"""Rollout indices of each unit, all of one length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """Noised final videos of one group with their credit, ready for the loss."""

    prompt: Prompt
    clean: Tensor
    """[N, C, F, H, W] float32, final latents of the rollouts."""
    noise: Tensor
    """[N, C, F, H, W] float32, the same within a unit."""
    sigma: Tensor
    """[N] float32 in [0, 1], the same within a unit."""
    advantage: Tensor
    """[N]."""
    trained: Tensor
    """[N] bool, alike within a unit; a False row is forwarded, but not learned."""
    unit_size: int
    """Rows of a unit, side by side."""
    pulled: Tensor | None = None
    """[N] bool: rows on which the pull to another policy acts; None is all."""
    start_log_prob: Tensor | None = None
    """[N] of the policy at the start of the update; None in the first update on the rows, whose own
    forward is that policy's, and for algorithms without a ratio."""

    @property
    def latents(self) -> Tensor:
        """[N, C, F, H, W], the state that the model sees."""
        return add_noise(self.clean, self.noise, self.sigma)


def assemble_forward(
    group: RolloutGroup,
    advantage: Tensor,
    units: Units,
    config: ForwardConfig,
    *,
    seed: int,
    shift: Shift,
    levels: Sequence[float] | None = None,
    pulled: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> ForwardBatch:
    """Return the rows of the rollouts that are in a unit.

    Noise and noise level of a unit follow from (recipe seed, group id, its first rollout, draw), so
    any layout of ranks and any resume gives the same rows.

    Args:
        advantage: [G].
        units: at least one.
        seed: the recipe's.
        shift: of the sampler's noise levels.
        levels: noise levels at which a distilled student is sampled; it is trained at these alone,
            one drawn for each, as Astrolabe (arXiv:2603.17051) does, having learned no other.
        pulled: [G] bool, rollouts on which a pull acts; None is all.
    """
    _check(group, advantage, units)
    rollouts = sorted(group.rollouts, key=lambda rollout: rollout.index)
    return noised(
        group.prompt,
        [rollout.latents for rollout in rollouts],
        advantage,
        units,
        config,
        name=group.group_id,
        seed=seed,
        shift=shift,
        levels=levels,
        pulled=pulled,
        device=device,
    )


def noised(
    prompt: Prompt,
    videos: Sequence[Tensor],
    advantage: Tensor,
    units: Units,
    config: ForwardConfig,
    *,
    name: str,
    seed: int,
    shift: Shift,
    levels: Sequence[float] | None = None,
    pulled: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> ForwardBatch:
    """Return the rows of the videos of a prompt that are in a unit; see `assemble_forward`.

    Args:
        videos: G clean latents [C, F, H, W].
        advantage: [G].
        name: of what is noised; with the seed it is what noise and levels follow from.
    """
    size = len(units[0])
    sigmas: list[Tensor] = []
    noises: list[Tensor] = []
    for draw in range(config.num_noise_levels):
        for unit in units:
            sigma, noise = _draw(
                derive_seed(seed, name, unit[0], draw, "forward"),
                videos[unit[0]].shape,
                config,
                shift,
                levels,
            )
            sigmas += [sigma] * size
            noises += [noise] * size
    order = [index for unit in units for index in unit] * config.num_noise_levels
    return ForwardBatch(
        prompt=prompt,
        clean=torch.stack([videos[index] for index in order]).to(device).float(),
        noise=torch.stack(noises).to(device),
        sigma=torch.cat(sigmas).to(device),
        advantage=advantage.float().cpu()[order].to(device),
        trained=torch.ones(len(order), dtype=torch.bool, device=device),
        unit_size=size,
        pulled=None if pulled is None else pulled.cpu()[order].to(device),
    )


def split_units(batch: ForwardBatch, max_rows: int) -> list[ForwardBatch]:
    """Cut a batch into smaller ones of at most `max_rows` rows; a unit stays whole.

    Raises:
        ValueError: a unit has more rows than that.
    """
    if max_rows < batch.unit_size:
        raise ValueError(
            f"learner.micro_batch_rows: {batch.unit_size} rows share their noise and are forwarded "
            f"together: expected at least {batch.unit_size}, got {max_rows}"
        )
    whole = max_rows // batch.unit_size * batch.unit_size
    parts = []
    for first in range(0, batch.sigma.numel(), whole):
        rows = slice(first, first + whole)
        cut = {
            name: value[rows]
            for name in (field.name for field in fields(batch))
            if isinstance(value := getattr(batch, name), Tensor)
        }
        parts.append(replace(batch, **cut))  # type: ignore[arg-type]
    return parts


def _draw(
    seed: int,
    shape: torch.Size,
    config: ForwardConfig,
    shift: Shift,
    levels: Sequence[float] | None,
) -> tuple[Tensor, Tensor]:
    """Return sigma [1] and noise [*shape], drawn on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        level = sample_sigma(1, density=config.density, shift=shift, generator=generator)
        low, high = config.sigma_range
        sigma = low + (high - low) * level
    else:
        drawn = torch.randint(len(levels), (1,), generator=generator)
        sigma = torch.tensor(levels)[drawn]
    return sigma, torch.randn(shape, generator=generator)


def _check(group: RolloutGroup, advantage: Tensor, units: Units) -> None:
    where = f"assemble: group {group.group_id}"
    indices = sorted(rollout.index for rollout in group.rollouts)
    if advantage.shape != (len(indices),) or indices != list(range(len(indices))):
        raise ValueError(
            f"{where}: expected rollouts 0 to {len(indices) - 1} and an advantage of each, "
            f"got {indices} and {tuple(advantage.shape)}"
        )
    if len({len(unit) for unit in units}) != 1:
        raise ValueError(
            f"{where}: units: expected one or more, all of one length, got {list(units)}"
        )
