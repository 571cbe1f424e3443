"""From the learner's parameters to a publish, and to a policy on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from rlvid.config import LearnerConfig, ModelConfig
from rlvid.learners.ema import Ema
from rlvid.learners.zero_engine import ZeroEngine
from rlvid.models.lora import save_lora
from rlvid.models.policy import Policy, open_policy
from rlvid.records import WeightsManifest
from rlvid.weights import Bucket, pack, trainable_parameters

BUCKET_BYTES = 64 * 2**20
"""One object of the object store each."""


def publish(
    source: ZeroEngine | Ema, *, is_root: bool, version: int, kind: str, base_digest: str
) -> tuple[WeightsManifest, list[Bucket]] | None:
    """Gather what is trained and pack it on the root rank; None elsewhere. A collective.

    LoRA publishes the adapter only. The values of an Ema are published in the live dtype.
    """
    if not is_root:
        _take_part(source.full_parameters())
        return None
    return pack(
        source.full_parameters(),
        version=version,
        parent_version=version - 1,
        kind=kind,
        base_digest=base_digest,
        bucket_bytes=BUCKET_BYTES,
    )


def export(
    source: ZeroEngine | Ema,
    folder: Path,
    *,
    is_root: bool,
    policy: Policy,
    model_config: ModelConfig,
    learner_config: LearnerConfig,
) -> None:
    """Write the policy in diffusers' layout on the root rank; a collective.

    full: the whole pipeline, built anew from `policy` on the host with the trained values, since a
    wrapped or sharded transformer is not something `from_pretrained` could read. lora: the
    adapter's safetensors file, which belongs on the transformer of `policy`.
    """
    if not is_root:
        _take_part(source.full_parameters())
        return
    tensors = {name: tensor.cpu() for name, tensor in source.full_parameters()}
    if learner_config.mode == "lora":
        save_lora(folder, tensors, learner_config.lora)
        return
    model = open_policy(policy, model_config, "cpu")
    _fill(trainable_parameters(model.transformer, "full"), tensors)
    model.save(str(folder))


def _take_part(tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Run a gather to its end for the sake of the root rank, keeping nothing."""
    for _ in tensors:
        pass


def _fill(live: dict[str, torch.nn.Parameter], tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.copy_(tensors[name])
