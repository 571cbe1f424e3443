"""A publish enters a live transformer whole or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rlvid.config import LoraConfig
from rlvid.models.lora import add_lora
from rlvid.records import WeightsManifest
from rlvid.testing import tiny_model
from rlvid.weights import (
    Bucket,
    WeightsError,
    apply_weights,
    base_digest,
    digest_tensors,
    pack,
    trainable_parameters,
)


def tiny_transformer(seed: int = 0) -> Any:
    return tiny_model(seed).transformer


def _with_lora(seed: int = 0, base_seed: int = 0) -> Any:
    transformer = tiny_transformer(base_seed)
    add_lora(transformer, LoraConfig(rank=2, alpha=4.0), seed=seed)
    return transformer


def _publish(
    transformer: nn.Module, mode: str, version: int = 1
) -> tuple[WeightsManifest, list[Bucket]]:
    return pack(
        trainable_parameters(transformer, mode),
        version=version,
        parent_version=version - 1,
        kind=mode,
        base_digest=base_digest(transformer, mode),
        bucket_bytes=4096,
    )


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_actor_holds_what_the_learner_published(mode: str) -> None:
    """Invariant 5 of the design: version and checksum on every push."""
    build = tiny_transformer if mode == "full" else _with_lora
    learner, actor = build(1), build(2)
    if mode == "lora":
        actor, learner = _with_lora(1), _with_lora(2)
    manifest, buckets = _publish(learner, mode)
    apply_weights(manifest, buckets, actor, mode=mode)
    assert digest_tensors(trainable_parameters(actor, mode)) == digest_tensors(
        trainable_parameters(learner, mode)
    )


def test_refused_publish_leaves_the_old_policy_whole() -> None:
    """A torn policy would sample videos that no version can explain."""
    learner, actor = tiny_transformer(1), tiny_transformer(2)
    before = digest_tensors(trainable_parameters(actor, "full"))
    manifest, buckets = _publish(learner, "full")
    buckets[-1] = buckets[-1].copy()
    buckets[-1][0] ^= 1
    with pytest.raises(WeightsError, match="digest"):
        apply_weights(manifest, buckets, actor, mode="full")
    assert digest_tensors(trainable_parameters(actor, "full")) == before


def test_adapter_of_another_base_is_refused() -> None:
    """The same adapter on another base is another policy."""
    manifest, buckets = _publish(_with_lora(base_seed=0), "lora")
    with pytest.raises(WeightsError, match="base model"):
        apply_weights(manifest, buckets, _with_lora(base_seed=1), mode="lora")


def test_adapter_for_a_model_without_one_is_refused() -> None:
    """An adapter that binds to nothing is the bug nobody sees."""
    manifest, buckets = _publish(_with_lora(), "lora")
    with pytest.raises(WeightsError, match=r"expected it to bind \d+ modules .* binds 0 here"):
        apply_weights(manifest, buckets, tiny_transformer(), mode="lora")


def test_other_rank_is_refused_with_the_tensor_named() -> None:
    """Learner and actors read one recipe; a difference means one of them did not."""
    actor = tiny_transformer()
    add_lora(actor, LoraConfig(rank=3, alpha=4.0))
    manifest, buckets = _publish(_with_lora(), "lora")
    with pytest.raises(WeightsError, match=r"blocks\.0.*expected \(3, 24\)"):
        apply_weights(manifest, buckets, actor, mode="lora")


def test_kind_must_match_the_mode() -> None:
    """Full weights for a LoRA actor would be half a policy."""
    manifest, buckets = _publish(tiny_transformer(), "full")
    with pytest.raises(WeightsError, match="kind"):
        apply_weights(manifest, buckets, _with_lora(), mode="lora")


def test_read_only_buckets_are_copied() -> None:
    """The object store maps buckets read-only; the live policy must not point into it."""
    learner, actor = tiny_transformer(1), tiny_transformer(2)
    manifest, buckets = _publish(learner, "full")
    shared = [np.array(bucket) for bucket in buckets]
    for bucket in shared:
        bucket.setflags(write=False)
    apply_weights(manifest, shared, actor, mode="full")
    with torch.no_grad():
        next(iter(trainable_parameters(actor, "full").values())).add_(1.0)
    assert manifest.digest == _publish(learner, "full")[0].digest
