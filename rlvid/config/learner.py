"""The `learner` section: parametrisation, optimiser, sharding."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rlvid.config.base import Section, default_of, is_set, refuse_unread
from rlvid.config.node_group import NodeGroup


class LoraConfig(Section):
    """Low-rank adapters on the transformer (peft)."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0.0)
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Module name endings; these are the attention projections of diffusers' transformers."""


class OptimizerConfig(Section):
    """AdamW."""

    learning_rate: float = Field(default=1e-4, gt=0.0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0.0)
    weight_decay: float = Field(default=1e-4, ge=0.0)
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up from 0."""
    decay: Literal["constant", "cosine"] = "constant"
    """After the warm-up; cosine ends at a tenth of the learning rate at the last step."""


class EmaConfig(Section):
    """Exponential moving average of the trained parameters."""

    decay: float = Field(default=0.9, gt=0.0, lt=1.0)
    """Flash-GRPO: 0.9 every 8 steps."""
    every: int = Field(default=8, ge=1)


class SleepingConfig(Section):
    """What the learner's sleeping twin costs; for simulations and tests of the loop."""

    train_s: float = Field(default=1.0, ge=0.0)
    """Seconds of a whole batch; a chunk sleeps its share."""
    publish_s: float = Field(default=0.1, ge=0.0)
    """Seconds of a publish."""


class OffloadConfig(Section):
    """What ZeRO keeps in the host's memory instead of the GPU's (ZeRO-Offload, arXiv:2101.06840).

    On a machine without a GPU both are the same memory, and only a disk saves any. A step is the
    one without it; where the gradient is clipped, but for the rounding of its norm. Checkpoints are
    the same, and go on with it or without.
    """

    optimizer: Literal["none", "cpu", "disk"] = "cpu"
    """cpu: float32 values and Adam's moments lie on the host and the optimiser steps there, the
    reduced gradients being copied to it. disk: the same, with values and moments in files of
    `folder`. Both need zero_stage 1 or more."""
    folder: str | None = None
    """With disk, and only then: where, on every node for itself. A rank takes 12 bytes there for
    each parameter of its share, reads and writes them at every step, and gives them back when it
    ends, however it ends. In a folder that is kept in memory (tmpfs) it saves nothing."""
    parameters: Literal["none", "cpu"] = "none"
    """cpu: each rank's share of the parameters, frozen ones too, lies on the host and comes to the
    GPU layer by layer. Needs zero_stage 3."""
    adam: Literal["torch", "deepspeed"] = "torch"
    """Of the optimiser on the host. torch: `torch.optim.AdamW`, as without offload. deepspeed:
    `DeepSpeedCPUAdam`, vectorised, which rounds otherwise, and in the last bits after a resume too.
    A C++ compiler builds it for minutes at its first use on each machine, so have it built before
    the run; `ds_report` shows whether `cpu_adam` can be."""
    pin_memory: bool = True
    """Page-locked, for copies at full speed beside the computation; false where `ulimit -l` or the
    host's memory is too small for it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.optimizer == "none" and self.parameters == "none":
            raise ValueError(
                "optimizer: expected 'cpu' or 'disk', or 'cpu' for parameters, got 'none' for "
                "both: leave the section out to keep everything on the GPU"
            )
        if (self.optimizer == "disk") != (self.folder is not None):
            raise ValueError(
                "folder: expected one with optimizer 'disk' and none without, got "
                f"{self.folder!r} with {self.optimizer!r}. Name a folder on a local disk, or set "
                "optimizer to 'disk'"
            )
        if self.adam == "deepspeed" and self.optimizer == "none":
            raise ValueError(
                "adam: 'deepspeed' steps on the host only: expected optimizer 'cpu', got 'none'. "
                "Set optimizer to 'cpu', or adam to 'torch'"
            )
        return self

    def check_stage(self, zero_stage: int) -> None:
        """Refuse a ZeRO stage that cannot do this, naming the key; DeepSpeed would ignore it."""
        if self.optimizer != "none" and zero_stage < 1:
            raise ValueError(
                f"offload.optimizer: {self.optimizer!r} needs zero_stage 1, 2 or 3, got "
                f"{zero_stage}, which has no optimiser of ZeRO's. Raise zero_stage, or leave the "
                "section out"
            )
        if self.parameters == "cpu" and zero_stage < 3:
            raise ValueError(
                f"offload.parameters: 'cpu' needs zero_stage 3, got {zero_stage}, which keeps "
                "whole parameters on every rank. Set zero_stage to 3, or parameters to 'none'"
            )


class LearnerConfig(Section):
    """A group of DeepSpeed ranks."""

    worker: str = "deepspeed"
    """deepspeed, sleeping (a twin that only takes its time), or `package.module:factory` of a rank
    of your own (`rlvid.learners.sleeping` shows its methods)."""
    sleeping: SleepingConfig = SleepingConfig()

    num_ranks: int = Field(default=1, ge=1)
    sequence_parallel: int = Field(default=1, ge=1)
    """Ranks that share the tokens of each clip (Ulysses): consecutive ones, the same rows to each.
    Activations shrink by it, to train clips that do not fit on one device. It divides `num_ranks`,
    the transformer's heads and a clip's tokens; `rlvid.models.token_plans` has the
    families. The `learner` of grpo, sft and dpo only."""
    num_cpus: float = Field(default=1.0, gt=0.0)
    num_gpus: float = Field(default=0.0, ge=0.0)
    """Ray GPUs per rank."""
    node_group: NodeGroup | None = None
    """Ray resource that only the nodes of the ranks have, e.g. "learner"; None is any node. Each
    phase's `learner` names its own."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: OffloadConfig | None = None
    mode: Literal["full", "lora"] = "lora"
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    activation_checkpointing: bool = False
    ema: EmaConfig | None = None
    micro_batch_rows: int = Field(default=64, ge=1)
    """Rows of one forward; a group with more is split (its gradient does not change)."""
    replay: Literal["as_sampled", "batched"] = "as_sampled"
    """How the trained steps of a group are forwarded: in the rollout's own batches, so that the
    ratio of fresh groups is exactly 1, or all at once, which is faster and rounds differently."""
    chunk_groups: int = Field(default=1, ge=1)
    """Groups the learner takes at a time as they become ready, rounded up to whole turns of the
    ranks; the gradient is that of the whole step. Larger chunks cost less per group and begin
    later. Credit that looks at the whole step (`advantage.std` global, running statistics) makes
    it one chunk."""
    crash_budget: int = Field(default=3, ge=0)
    """Times the ranks may be lost within `crash_window_s`; they are started again from the last
    checkpoint, and one more loss ends the run."""
    crash_window_s: float = Field(default=1800.0, gt=0.0)
    check_parameters_every: int = Field(default=50, ge=0)
    """Optimiser steps between comparisons of the ranks' parameters, digest by digest; 0: never."""
    deadline_s: float = Field(default=600.0, gt=0.0)
    """Seconds one chunk of a step, publish or checkpoint may take."""
    stall_s: float = Field(default=120.0, gt=0.0)
    """Seconds a rank may stay silent to the driver, or a chunk without a finished micro-batch;
    then the gang is given up, sooner than `deadline_s` would. More than the slowest forward and
    backward pass of `micro_batch_rows` takes."""

    @property
    def data_parallel(self) -> int:
        """Ranks, or groups of ranks that share clips, among which rows are dealt out."""
        return self.num_ranks // self.sequence_parallel

    @model_validator(mode="after")
    def _check_sequence_groups(self) -> Self:
        if self.num_ranks % self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel: {self.sequence_parallel} ranks to a clip do not divide "
                f"num_ranks {self.num_ranks}: expected a divisor of it. Set num_ranks to a multiple"
            )
        return self

    @model_validator(mode="after")
    def _check_offload(self) -> Self:
        if self.offload is not None:
            self.offload.check_stage(self.zero_stage)
        return self

    @model_validator(mode="after")
    def _check_worker(self) -> Self:
        if self.worker == "deepspeed":
            refuse_unread(self, ("sleeping",), "by worker deepspeed, but by sleeping")
        return self


OF_GRPO = {
    "worker": "{phase} has ranks of its own",
    "crash_budget": "{phase} ends with a lost rank and is resumed",
    "crash_window_s": "{phase} ends with a lost rank and is resumed",
    "check_parameters_every": "{phase} compares no parameters between its ranks",
    "chunk_groups": "{phase} takes each batch as a whole",
    "replay": "{phase} has no denoising steps to replay",
}
"""Setting that only the learner of grpo reads to why another phase's does not."""


def check_phase_learner(learner: LearnerConfig, phase: str) -> None:
    """Raise ValueError where the learner of another phase than grpo has settings of grpo's alone.

    Where `mode` is full by default, an adapter's settings without the mode would do nothing.
    """
    for name, why in OF_GRPO.items():
        if is_set(learner, name):
            raise ValueError(
                f"learner.{name}: is of the learner of grpo; {why.format(phase=phase)}: expected "
                f"its default, {default_of(learner, name)!r}, got {getattr(learner, name)!r}. "
                "Leave it out"
            )
    if phase in FULL_BY_DEFAULT and learner.mode == "full" and learner.lora != LoraConfig():
        raise ValueError(
            "learner.lora: is of mode lora: expected its defaults, got other ones with mode full. "
            "Set learner.mode to lora, or leave it out"
        )


FULL_BY_DEFAULT = ("sft", "distillation")
"""Phases of which nobody who set an adapter has chosen the mode full."""
