"""Weights on a GPU: where the spare buffer lies, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlvid.records import WeightsManifest
from rlvid.weights import (
    Bucket,
    WeightsError,
    WeightsHolder,
    base_digest,
    digest_tensors,
    pack,
    trainable_parameters,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs a CUDA device: torch.cuda.is_available() is False",
    ),
]


def _module(num_tensors: int, side: int = 1024) -> nn.Module:
    module = nn.Module()
    for index in range(num_tensors):
        value = torch.randn(side, side, device="cuda").to(torch.bfloat16)
        module.register_parameter(f"p{index:04d}", nn.Parameter(value))
    return module


def _publish(module: nn.Module, version: int) -> tuple[WeightsManifest, list[Bucket]]:
    return pack(
        trainable_parameters(module, "full"),
        version=version,
        parent_version=version - 1,
        kind="full",
        base_digest=base_digest(module, "full"),
    )


def test_swaps_come_from_the_host_first_and_from_the_device_then() -> None:
    """Before the first group nobody knows what sampling takes, so no second copy is made on it."""
    learner, actor = _module(8), _module(8)
    holder = WeightsHolder(actor, mode="full", actor_id="a")
    parameters = trainable_parameters(actor, "full")
    pointers = set()
    for version in range(5):
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.add_(0.5)
        holder.stage(*_publish(learner, version))
        holder.swap()
        holder.check_live()
        assert digest_tensors(parameters) == digest_tensors(trainable_parameters(learner, "full"))
        pointers.add(parameters["p0000"].data_ptr())
    assert all(parameter.is_cuda for parameter in parameters.values())
    assert len(pointers) == 3


def test_damaged_publish_is_refused_on_the_device_too() -> None:
    """It is hashed on the host before it is copied."""
    actor = _module(4)
    holder = WeightsHolder(actor, mode="full", actor_id="a")
    before = digest_tensors(trainable_parameters(actor, "full"))
    manifest, buckets = _publish(_module(4), 1)
    buckets[0][77] ^= 1
    with pytest.raises(WeightsError, match="damaged"):
        holder.stage(manifest, buckets)
    holder.swap()
    assert digest_tensors(trainable_parameters(actor, "full")) == before
