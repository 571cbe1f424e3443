"""What the engine asks of DeepSpeed, and what it refuses to; DeepSpeed itself is not imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from rlvid.config import LearnerConfig, OffloadConfig
from rlvid.weights import trainable_parameters

MAX_BUCKET_ELEMENTS = 50_000_000
"""Of the buffer in which gradients go to other ranks. Stages 2 and 3 and offload free gradients by
the bucket, so up to 10 bytes for each of these wait: DeepSpeed's default is ten times as many."""
STEP_ELEMENTS = 2**25
"""Elements on which a rank's optimiser steps at a time. ZeRO copies so many gradients, and AdamW
makes two temporaries as large: three times 4 bytes for each, whatever the model's size."""


def check_dtypes(transformer: nn.Module, config: LearnerConfig) -> None:
    """Refuse what DeepSpeed would do badly or not at all.

    Stage 0 keeps no float32 master, so small steps on bf16 parameters would be rounded away. Stage
    3 lays all it trains into one flat buffer, which has one dtype.
    """
    trained = trainable_parameters(transformer, config.mode).values()
    dtypes = sorted({str(parameter.dtype) for parameter in trained})
    if config.zero_stage == 0 and dtypes != ["torch.float32"]:
        raise ValueError(
            f"learner.zero_stage: 0 would train {dtypes} without a float32 master; use zero_stage 1"
        )
    if config.zero_stage == 3 and len(dtypes) > 1:
        raise ValueError(
            f"learner.zero_stage: 3 trains parameters of one dtype only, got {dtypes} (diffusers "
            "keeps norms and time embedding in float32). Use zero_stage 2, mode 'lora', or "
            "model.dtype 'float32'"
        )


def optimizer_groups(
    parameters: Iterable[nn.Parameter], config: LearnerConfig, world_size: int
) -> list[dict[str, Any]]:
    """Groups of one dtype and of about `STEP_ELEMENTS` to a rank, but for larger parameters.

    ZeRO flattens a group into one buffer, which has one dtype, and steps on group after group.

    With offload the narrowest comes first. Where the first group is float32, stages 1 and 2 add the
    others' micro-batches up on the host in their own dtype, and a bf16 sum of many loses most.
    """
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_dtype.setdefault(parameter.dtype, []).append(parameter)
    dtypes = list(by_dtype)
    if config.offload is not None:
        dtypes.sort(key=lambda dtype: dtype.itemsize)
    limit = STEP_ELEMENTS * world_size
    return [{"params": part} for dtype in dtypes for part in _cut(by_dtype[dtype], limit)]


def _cut(parameters: Iterable[nn.Parameter], limit: int) -> Iterator[list[nn.Parameter]]:
    """Yield runs of parameters of at most so many elements, or of one that has more."""
    run: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if run and size + parameter.numel() > limit:
            yield run
            run, size = [], 0
        run.append(parameter)
        size += parameter.numel()
    yield run


def deepspeed_config(
    config: LearnerConfig, world_size: int, *, persistent_elements: int, trained_elements: int
) -> dict[str, Any]:
    """DeepSpeed's settings. Batch sizes are formal: the accumulation boundary is ours.

    No bf16 section: it would cast the parts that diffusers keeps in float32. Dtypes stay as loaded;
    ZeRO keeps a float32 master of every bf16 group.

    Args:
        persistent_elements: stage 3 keeps smaller parameters whole on every rank between uses.
        trained_elements: of all trained parameters, whole. DeepSpeed allocates the buffer of
            gradients on their way to other ranks at its full size, however few there are.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "gradient_clipping": config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW may step on the host as well
        "steps_per_print": 10**9,
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": min(MAX_BUCKET_ELEMENTS, trained_elements),
            "stage3_param_persistence_threshold": persistent_elements,
            "memory_efficient_linear": False,  # `zero_linear` has ours
            **_offload_config(config.offload),
        },
    }


def _offload_config(offload: OffloadConfig | None) -> dict[str, Any]:
    if offload is None:
        return {}
    # DeepSpeed is not told of a disk: what `zero_state` puts there is on the host to it.
    optimizer = "cpu" if offload.optimizer == "disk" else offload.optimizer
    places = {"offload_optimizer": optimizer, "offload_param": offload.parameters}
    return {
        key: {"device": place, "pin_memory": offload.pin_memory}
        for key, place in places.items()
        if place != "none"
    }
