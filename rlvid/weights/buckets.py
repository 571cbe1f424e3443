"""Named tensors to flat buckets under a manifest, and back with every byte verified."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rlvid.records import WeightsBucket, WeightsManifest
from rlvid.weights.canary import canary_tolerance
from rlvid.weights.checksums import digest_bytes, tensor_bytes
from rlvid.weights.errors import WeightsError
from rlvid.weights.layout import (
    DTYPES,
    Layout,
    TensorSpec,
    check_manifest,
    plan_layout,
    tensor_bytes_of,
)
from rlvid.weights.manifest import manifest_digest

Bucket = np.ndarray[tuple[int], np.dtype[np.uint8]]


def pack(
    tensors: Iterable[tuple[str, Tensor]] | Mapping[str, Tensor],
    *,
    version: int,
    parent_version: int,
    kind: str,
    base_digest: str,
    bucket_bytes: int = 64 * 2**20,
    incarnation: int = 0,
    num_bound: int | None = None,
    canary_limit: float | None = None,
) -> tuple[WeightsManifest, list[Bucket]]:
    """Lay tensors that are all here into buckets in the given order; a learner's ranks do it by
    parts (`rlvid.learners.publish`).

    Args:
        num_bound: None counts the adapter matrices among the names.
        canary_limit: None takes what the first tensor's dtype allows.
    """
    items = dict(tensors)
    specs = [TensorSpec(name=n, shape=tuple(t.shape), dtype=t.dtype) for n, t in items.items()]
    layout = plan_layout(specs, bucket_bytes)
    buckets = [new_bucket(size) for size in layout.bucket_bytes]
    for entry in layout.tensors:
        data = tensor_bytes(items[entry.name])
        buckets[entry.bucket][entry.offset : entry.offset + data.nbytes] = data
    if num_bound is None:
        num_bound = sum(name.endswith(".lora_A.weight") for name in items)
    if canary_limit is None:
        canary_limit = canary_tolerance(specs[0].dtype)
    return make_manifest(
        layout,
        [digest_bytes(bucket) for bucket in buckets],
        incarnation=incarnation,
        version=version,
        parent_version=parent_version,
        kind=kind,
        base_digest=base_digest,
        num_bound=num_bound,
        canary_limit=canary_limit,
    ), buckets


def new_bucket(num_bytes: int) -> Bucket:
    """Return zeroed bytes whose first has the alignment of torch's own buffers."""
    return torch.zeros(num_bytes, dtype=torch.uint8).numpy()


def make_manifest(
    layout: Layout,
    digests: Sequence[str],
    *,
    incarnation: int,
    version: int,
    parent_version: int,
    kind: str,
    base_digest: str,
    num_bound: int,
    canary_limit: float,
) -> WeightsManifest:
    """Seal a layout and the digests of its buckets."""
    manifest = WeightsManifest(
        incarnation=incarnation,
        version=version,
        parent_version=parent_version,
        kind=kind,
        base_digest=base_digest,
        tensors=layout.tensors,
        buckets=tuple(
            WeightsBucket(index=index, num_bytes=num_bytes, digest=digest)
            for index, (num_bytes, digest) in enumerate(
                zip(layout.bucket_bytes, digests, strict=True)
            )
        ),
        num_bound=num_bound,
        canary_tolerance=canary_limit,
        digest="",
    )
    return replace(manifest, digest=manifest_digest(manifest))


def unpack(manifest: WeightsManifest, buckets: Sequence[Bucket]) -> dict[str, Tensor]:
    """Verify everything and return fresh host tensors by name.

    Raises:
        WeightsError: digest of manifest or bucket, number or size of buckets, or a manifest that
            cannot be.
    """
    check_manifest(manifest)
    check_buckets(manifest, buckets)
    for entry, bucket in zip(manifest.buckets, buckets, strict=True):
        check_digest(manifest, entry.index, digest_bytes(bucket))
    return {
        entry.name: torch.from_numpy(
            buckets[entry.bucket][entry.offset : entry.offset + tensor_bytes_of(entry)].copy()
        )
        .view(DTYPES[entry.dtype])
        .reshape(entry.shape)
        for entry in manifest.tensors
    }


def check_buckets(manifest: WeightsManifest, buckets: Sequence[object]) -> None:
    """Refuse what cannot be the bytes of this manifest, before any is read.

    Raises:
        WeightsError: number, type or size.
    """
    where = f"weights version {manifest.version}"
    if len(buckets) != len(manifest.buckets):
        raise WeightsError(
            f"{where}: expected {len(manifest.buckets)} buckets, got {len(buckets)}; "
            "fetch all of them"
        )
    for entry, bucket in zip(manifest.buckets, buckets, strict=True):
        if not isinstance(bucket, np.ndarray) or bucket.dtype != np.uint8 or bucket.ndim != 1:
            shown = getattr(bucket, "dtype", type(bucket).__name__), getattr(bucket, "shape", "")
            raise WeightsError(
                f"{where}: bucket {entry.index}: expected one row of uint8, got {shown}"
            )
        if bucket.nbytes != entry.num_bytes:
            raise WeightsError(
                f"{where}: bucket {entry.index}: expected {entry.num_bytes} bytes, "
                f"got {bucket.nbytes}"
            )


def check_digest(manifest: WeightsManifest, index: int, got: str) -> None:
    """Refuse a bucket whose bytes are not those that were published.

    Raises:
        WeightsError: names the bucket and its tensors.
    """
    expected = manifest.buckets[index].digest
    if got != expected:
        names = [tensor.name for tensor in manifest.tensors if tensor.bucket == index]
        raise WeightsError(
            f"weights version {manifest.version}: bucket {index}: expected digest {expected}, "
            f"got {got}; its tensors ({names[0]!r} to {names[-1]!r}) are damaged, fetch it again"
        )
