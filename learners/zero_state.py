"""Where the float32 values and Adam's moments of each parameter lie on this rank, by ZeRO stage.

    stage 0      the parameters themselves, whole on every rank
    stages 1, 2  a run of a flat buffer, for parameters of this rank's partition
    stage 3      this rank's part of every parameter, in flat buffers

With `learner.offload` the flat buffers, their moments and gradients lie on the host, all but the
gradients in files if it says so; a checkpoint is the same. DeepSpeed then keeps the gradient's
buffer, which it drops with the step otherwise.

It reads attributes of DeepSpeed's optimisers (0.19) and imports none of it; `zero_engine` asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlvid.config import LearnerConfig
from rlvid.learners.disk_state import disk_zeros
from rlvid.learners.fragments import Piece, PieceReader, check_names, write_pieces
from rlvid.learners.ranks import Ranks

STEM = "optimizer"
MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive elements of a parameter in what the torch optimiser steps on."""

    name: str
    start: int
    """First element in the flattened parameter."""
    owner: Tensor
    """The optimiser's tensor, flat or the parameter itself."""
    offset: int
    num_elements: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return the same elements of a tensor with the owner's shape, as a view."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.num_elements)


class ZeroState:
    """This rank's share of the training state."""

    def __init__(
        self,
        optimizer: Any,
        config: LearnerConfig,
        parameters: Mapping[str, nn.Parameter],
        ranks: Ranks,
    ) -> None:
        stage = config.zero_stage
        offload = config.offload
        self._is_offloaded = offload is not None and offload.optimizer != "none"
        self._optimizer = optimizer
        self._adam: torch.optim.Optimizer = optimizer if stage == 0 else optimizer.optimizer
        self._stage = stage
        self._parameters = parameters
        self._ranks = ranks
        self._folder: Path | None = None
        if offload is not None and offload.folder is not None:
            self._folder = Path(offload.folder).expanduser()
            self._move_to(self._folder)

    def save(self, folder: Path) -> None:
        """Write this rank's share."""
        write_pieces(folder, STEM, self._ranks.rank, self._pieces())

    def load(self, folder: Path, *, num_steps: int) -> None:
        """Read this rank's share of what ranks of any layout wrote.

        The optimiser must not have stepped yet. The live parameters are left alone.

        Args:
            num_steps: Adam's steps so far, which its bias correction counts.
        """
        with PieceReader(folder, STEM) as reader:
            check_names(reader, MASTER, self._parameters, f"checkpoint {folder}")
            for run in self._runs():
                reader.fill(MASTER, run.name, run.start, run.of(run.owner))
                if num_steps:
                    state = self._state_of(run.owner, num_steps)
                    for moment in MOMENTS:
                        reader.fill(moment, run.name, run.start, run.of(state[moment]))
        if num_steps and self._stage in (1, 2):
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    @torch.no_grad()
    def refresh_live(self) -> None:
        """Set the live parameters to the float32 values, as a step does at its end; collective."""
        optimizer = self._optimizer
        if self._stage in (1, 2):
            optimizer.update_lp_params()
        elif self._stage == 3:
            optimizer._partition_all_parameters()
            for index in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(index)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def forget_offloaded_gradient(self) -> None:
        """Zero the gradient that lies on the host, and what was measured of it; no collective.

        A step writes only where a parameter has a gradient: the next one would go along this one's
        again for an expert that saw no row. Nothing to do without optimiser offload.
        """
        if not self._is_offloaded:
            return
        self._optimizer.reset_cpu_buffers()
        for owner in self._flat():
            assert owner.grad is not None, "an offloaded partition has its gradient from the start"
            owner.grad.zero_()

    @torch.no_grad()
    def _move_to(self, folder: Path) -> None:
        """Put the float32 values into files and make the moments there, before the first step."""
        for owner in self._flat():
            owner.data = disk_zeros(folder, owner.numel()).copy_(owner)
            self._state_of(owner, 0)
        if self._stage in (1, 2):
            self._optimizer._link_all_hp_params()  # its views are of what was in memory

    def _flat(self) -> list[Tensor]:
        """Return the float32 buffers of stages 1 to 3, by group."""
        optimizer = self._optimizer
        flat: list[Tensor] = (
            optimizer.fp32_partitioned_groups_flat
            if self._stage == 3
            else optimizer.single_partition_of_fp32_groups
        )
        return flat

    def _pieces(self) -> Iterator[Piece]:
        for index, run in enumerate(self._runs()):
            if self._stage == 0 and index % self._ranks.world_size != self._ranks.rank:
                continue  # every rank holds everything
            yield Piece(MASTER, run.name, run.start, run.of(run.owner))
            state = self._adam.state.get(run.owner, {})
            for moment in MOMENTS:
                if moment in state:
                    yield Piece(moment, run.name, run.start, run.of(state[moment]))

    def _state_of(self, owner: Tensor, num_steps: int) -> dict[str, Tensor]:
        """Return Adam's state of a tensor after so many steps, made as its first would make it.

        torch counts its steps in a float tensor, DeepSpeedCPUAdam in an int.
        """
        state: dict[str, Any] = self._adam.state[owner]
        is_torch = isinstance(self._adam, torch.optim.AdamW)
        state["step"] = torch.tensor(float(num_steps)) if is_torch else num_steps
        for moment in MOMENTS:
            if moment not in state:
                state[moment] = self._zeros_like(owner)
        return state

    def _zeros_like(self, owner: Tensor) -> Tensor:
        if self._folder is None:
            return torch.zeros_like(owner, memory_format=torch.preserve_format)
        return disk_zeros(self._folder, owner.numel())

    def _runs(self) -> Iterator[_Run]:
        if self._stage == 0:
            for name, parameter in self._parameters.items():
                yield _Run(name, 0, parameter, 0, parameter.numel())
        elif self._stage == 3:
            yield from self._runs_of_stage_3()
        else:
            flat = self._flat()
            for name, parameter in self._parameters.items():
                mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
                if mapping is None:
                    continue  # all of it is in other ranks' partitions
                here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                owner = flat[mapping.param_group_index]
                yield _Run(name, there.start, owner, here.start, here.numel)

    def _runs_of_stage_3(self) -> Iterator[_Run]:
        optimizer = self._optimizer
        for name, parameter in self._parameters.items():
            group, offset, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = padded * self._ranks.rank
            length = min(padded, int(parameter.ds_numel) - start)  # type: ignore[attr-defined]
            if length > 0:
                yield _Run(name, start, self._flat()[group], offset, length)
