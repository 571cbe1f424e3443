"""One transformer under DeepSpeed ZeRO, stages 0 to 3. The only file that knows DeepSpeed.

Three habits of DeepSpeed are taken out here: it divides the loss by the accumulation steps (off),
averages gradients over ranks (the loss is multiplied by the world size, so they are summed), and
owns the accumulation boundary (told explicitly). A caller hands in a loss that is a share of the
whole update's, and any split into micro-batches and ranks gives the same step. Ranks that share the
tokens of a clip hand in the same loss, and their parts of its gradient are summed as well.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist

from rlvid.config import LearnerConfig
from rlvid.learners.ranks import Ranks
from rlvid.learners.zero_linear import let_go_of_weights
from rlvid.learners.zero_settings import check_dtypes, deepspeed_config, optimizer_groups
from rlvid.learners.zero_state import ZeroState
from rlvid.weights import TensorSpec, trainable_parameters

GATHER_ELEMENTS = 64 * 2**20
"""Elements of full parameters that exist at once while a sharded model is read out."""
PERSISTENT_ELEMENTS = 100_000
"""Stage 3 keeps smaller parameters whole on every rank between uses (DeepSpeed's default)."""


class ZeroEngine:
    """The sharded transformer, its optimiser, and the ranks that share them."""

    def __init__(
        self, transformer: nn.Module, config: LearnerConfig, *, device: torch.device
    ) -> None:
        """Wrap `transformer`; what it trains is what `requires_grad` says."""
        deepspeed = _deepspeed()
        check_dtypes(transformer, config)
        join_ranks(device, timeout_s=config.deadline_s)
        self.ranks = Ranks(device, sequence_parallel=config.sequence_parallel)
        self.device = device
        self._config = config
        self._parameters = trainable_parameters(transformer, config.mode)
        if config.activation_checkpointing:
            _enable_checkpointing(transformer)
        if config.zero_stage >= 2:
            _keep_order(transformer)
        if config.zero_stage == 3:
            let_go_of_weights(transformer)
        adam = torch.optim.AdamW
        if config.offload is not None and config.offload.adam == "deepspeed":
            adam = deepspeed.ops.adam.DeepSpeedCPUAdam
        optimizer = adam(
            optimizer_groups(self._parameters.values(), config, self.ranks.world_size),
            lr=config.optimizer.learning_rate,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            weight_decay=config.optimizer.weight_decay,
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=transformer,
            optimizer=optimizer,
            config=deepspeed_config(
                config,
                self.ranks.world_size,
                persistent_elements=PERSISTENT_ELEMENTS,
                trained_elements=sum(value.numel() for value in self._parameters.values()),
            ),
            dist_init_required=False,
        )
        self._state = ZeroState(self._optimizer, config, self._parameters, self.ranks)
        self._gathered = deepspeed.zero.GatheredParameters
        self._full_master = deepspeed.utils.safe_get_full_fp32_param

    @property
    def module(self) -> nn.Module:
        """What the model calls: the engine, whose hooks gather and reduce."""
        module: nn.Module = self._engine
        return module

    @property
    def transformer(self) -> nn.Module:
        """The wrapped transformer itself."""
        module: nn.Module = self._engine.module
        return module

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of one micro-batch; the last one of a step completes the sum over ranks.

        Every rank must call this equally often in a step: stages 2 and 3 reduce in each call.

        Args:
            loss: scalar, already divided by the rows of the whole update over all ranks.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss * self.ranks.world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float, *, divisor: float = 1.0) -> float:
        """Clip, take the optimiser step and return the gradient norm before clipping.

        Args:
            divisor: what the gradient is still divided by, before it is measured and clipped; for a
                number of rows that was not known when the losses were handed in. ZeRO takes it as
                its loss scale, which is 1 while gradients are summed; 1.0 changes no bit.

        Raises:
            FloatingPointError: the gradient is not finite; nothing trained on it may go on.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if self._config.zero_stage == 0:
            norm: float | None = self._plain_grad_norm(divisor)
            self._engine.step()
        else:
            norm = None
            self._optimizer.loss_scale = divisor
            try:
                self._engine.step()
            finally:
                self._optimizer.loss_scale = 1.0
            self._state.forget_offloaded_gradient()
        if norm is None:
            norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"learner: gradient norm is {norm}: expected a finite number. "
                "Lower learner.optimizer.learning_rate, or look for inf in the rollouts"
            )
        return norm

    def take_gradients(self) -> list[Tensor]:
        """Return the gradient summed over all ranks by the last `backward`, and drop it.

        Stage 0 only; the others hold no whole gradient. Of every trained parameter, in order.
        """
        taken = []
        for parameter in self._parameters.values():
            gradient = parameter.grad
            taken.append(
                torch.zeros_like(parameter) if gradient is None else gradient.detach().clone()
            )
            parameter.grad = None
        return taken

    def put_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Make these, of `take_gradients`, what the next step goes along."""
        for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
            parameter.grad = gradient.to(parameter.dtype)

    def discard(self) -> None:
        """Drop the gradient summed so far; no collective.

        What DeepSpeed does with an overflow: there is no call for it, and `zero_grad` leaves what
        stages 1 to 3 have reduced already.
        """
        self._engine.zero_grad()
        optimizer = self._optimizer
        if self._config.zero_stage == 0:
            return
        optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda" and self._config.offload is not None:
            torch.cuda.synchronize(self.device)  # gradients may still be on their way to the host
        self._state.forget_offloaded_gradient()
        if self._config.zero_stage == 3:
            optimizer.averaged_gradients = {}
            return
        optimizer._release_preflattened_grad_buffers()
        optimizer.micro_step_id = -1
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = None
        for group in optimizer.all_grad_tensors:
            optimizer.all_grad_tensors[group] = None

    def full_parameters(self, *, master: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield (canonical name, full tensor) of everything trained, in sorted order.

        A collective at stage 3: every rank must run it to its end, together. Buckets are measured
        by the full size (`ds_numel`), since a sharded parameter has `numel()` 0.

        Args:
            master: the optimiser's float32 values instead of the live ones, where they differ.
        """
        for names in self._gather_buckets():
            parameters = [self._parameters[name] for name in names]
            with torch.no_grad(), self._whole(parameters):
                copies = [(n, self._read(self._parameters[n], master)) for n in names]
            yield from copies

    def replicated_parameters(self) -> dict[str, Tensor]:
        """Return what this rank holds whole of what is trained, by canonical name; no collective.

        Stages 0 to 2: everything. Stage 3: the small parameters that it keeps between uses.
        """
        if self._config.zero_stage < 3:
            return {name: value.detach() for name, value in self._parameters.items()}
        return {
            name: value.detach()
            for name, value in self._parameters.items()
            if getattr(value, "ds_persist", False) and value.numel() == int(value.ds_numel)  # type: ignore[attr-defined]
        }

    @property
    def needs_all_ranks(self) -> bool:
        """Whether `whole` is a collective."""
        return self._config.zero_stage == 3

    def specs(self) -> list[TensorSpec]:
        """Return name, whole shape and dtype of everything trained, in sorted order.

        A sharded parameter has shape (0,); its whole one is `ds_shape`.
        """
        return [
            TensorSpec(
                name=name,
                shape=tuple(getattr(parameter, "ds_shape", parameter.shape)),
                dtype=parameter.dtype,
            )
            for name, parameter in self._parameters.items()
        ]

    @contextmanager
    def whole(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Within the block these parameters are whole on this rank, not to be written to.

        A collective at stage 3, coalesced over the names; stages 0 to 2 have them whole anyway.
        """
        parameters = [self._parameters[name] for name in names]
        with torch.no_grad(), self._whole(parameters):
            yield {
                name: parameter.detach() for name, parameter in zip(names, parameters, strict=True)
            }

    def save(self, folder: Path) -> None:
        """Write this rank's share of float32 parameters and moments."""
        self._state.save(folder)

    def load(self, folder: Path, *, num_steps: int) -> None:
        """Read what ranks of any number and stage wrote, into an engine that has not stepped yet.

        A collective. The live parameters follow from the float32 ones.

        Args:
            num_steps: optimiser steps taken when it was written.
        """
        self._state.load(folder, num_steps=num_steps)
        self._state.refresh_live()

    def _plain_grad_norm(self, divisor: float) -> float:
        """Divide the gradient and return its norm.

        Stage 0 has plain gradients, already summed over ranks; DeepSpeed keeps no norm then.
        """
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        if divisor != 1.0:
            for gradient in gradients:
                gradient.div_(divisor)
        squares = [gradient.float().square().sum() for gradient in gradients]
        return float(torch.stack(squares).sum().sqrt())

    def _read(self, parameter: nn.Parameter, master: bool) -> Tensor:
        if master and parameter.dtype != torch.float32 and self._config.zero_stage > 0:
            full = cast(Tensor, self._full_master(parameter))
            return full.detach().clone()
        return parameter.detach().float() if master else parameter.detach().clone()

    def _whole(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Any]:
        if self._config.zero_stage < 3:
            return nullcontext()
        context: AbstractContextManager[Any] = self._gathered(list(parameters))
        return context

    def _gather_buckets(self) -> Iterator[list[str]]:
        names: list[str] = []
        size = 0
        for name, parameter in self._parameters.items():
            elements = int(getattr(parameter, "ds_numel", parameter.numel()))
            if names and size + elements > GATHER_ELEMENTS:
                yield names
                names, size = [], 0
            names.append(name)
            size += elements
        yield names


def _deepspeed() -> Any:
    """Import DeepSpeed with its console chatter off, and without its compiled collective.

    On a CPU it would compile one for `inference_all_reduce`, which training never calls: a minute
    at the first start, and under a lock file of torch's that a killed rank leaves behind, so that
    every later start waits for ever.
    """
    # Its collectives call torch names that torch has renamed; one warning a call floods the log.
    warnings.filterwarnings("ignore", r".*torch\.distributed\..* is deprecated", FutureWarning)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def join_ranks(device: torch.device, *, timeout_s: float) -> None:
    """Join the process group that RANK, WORLD_SIZE and MASTER_ADDR/PORT describe, once."""
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise ValueError(
            f"learner: environment lacks {', '.join(missing)}; start ranks through LearnerGroup "
            "or torchrun, which set them"
        )
    if dist.is_initialized():
        return
    os.environ.setdefault("LOCAL_RANK", "0")
    _deepspeed().init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=timeout_s),
    )


def _enable_checkpointing(transformer: nn.Module) -> None:
    enable = getattr(transformer, "enable_gradient_checkpointing", None)
    if not callable(enable):
        raise ValueError(
            f"learner.activation_checkpointing: {type(transformer).__name__} does not support it; "
            "set it to false"
        )
    enable()


def _keep_order(transformer: nn.Module) -> None:
    """Have a transformer that chooses among its parts run them all, in one order.

    Stages 2 and 3 reduce gradients as they come, bucket by bucket: ranks that ran other parts would
    add up gradients of different parameters, without an error.
    """
    keep_order = getattr(transformer, "keep_order", None)
    if callable(keep_order):
        keep_order()
