"""Named tensors to flat buckets under a manifest, and back with every byte verified."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rlvid.records import WeightsBucket, WeightsManifest, WeightsTensor
from rlvid.weights.checksums import digest_bytes, tensor_bytes
from rlvid.weights.manifest import manifest_digest

Bucket = np.ndarray[tuple[int], np.dtype[np.uint8]]

ALIGNMENT = 16
"""Bytes; every tensor starts at a multiple, so any dtype can be viewed in place."""

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


class WeightsError(ValueError):
    """A publish that must not be used; the message names tensor or bucket, expected and got."""


def pack(
    tensors: Iterable[tuple[str, Tensor]] | Mapping[str, Tensor],
    *,
    version: int,
    parent_version: int,
    kind: str,
    base_digest: str,
    bucket_bytes: int = 64 * 2**20,
) -> tuple[WeightsManifest, list[Bucket]]:
    """Lay the tensors into flat buckets in the given order.

    Args:
        tensors: consumed one at a time, so a sharded learner may gather them lazily.
        bucket_bytes: a bucket is closed when the next tensor would go beyond; a larger tensor gets
            a bucket of its own size.
    """
    if bucket_bytes < 1:
        raise ValueError(f"bucket_bytes must be at least 1, got {bucket_bytes}")
    items = tensors.items() if isinstance(tensors, Mapping) else tensors
    entries: list[WeightsTensor] = []
    buckets: list[Bucket] = []
    parts: list[Bucket] = []
    size = 0
    for name, tensor in items:
        data = tensor_bytes(tensor)
        offset = -(-size // ALIGNMENT) * ALIGNMENT
        if parts and offset + data.nbytes > bucket_bytes:
            buckets.append(np.concatenate(parts))
            parts, offset, size = [], 0, 0
        parts += [np.zeros(offset - size, dtype=np.uint8), data]
        size = offset + data.nbytes
        entries.append(
            WeightsTensor(
                name=name,
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                bucket=len(buckets),
                offset=offset,
            )
        )
    if parts:
        buckets.append(np.concatenate(parts))
    manifest = WeightsManifest(
        version=version,
        parent_version=parent_version,
        kind=kind,
        base_digest=base_digest,
        tensors=tuple(entries),
        buckets=tuple(
            WeightsBucket(index=index, num_bytes=bucket.nbytes, digest=digest_bytes(bucket))
            for index, bucket in enumerate(buckets)
        ),
        digest="",
    )
    return replace(manifest, digest=manifest_digest(manifest)), buckets


def unpack(manifest: WeightsManifest, buckets: Sequence[Bucket]) -> dict[str, Tensor]:
    """Verify everything and return fresh host tensors by name.

    Raises:
        WeightsError: digest of manifest or bucket, number or size of buckets, or a tensor that
            overlaps another, lies outside its bucket, appears twice or has an unknown dtype.
    """
    where = f"weights version {manifest.version}"
    _check_manifest(manifest, where)
    _check_buckets(manifest, buckets, where)
    tensors: dict[str, Tensor] = {}
    ends = [0] * len(buckets)
    for entry in manifest.tensors:
        start, end = _span(entry, ends, manifest, where)
        if entry.name in tensors:
            raise WeightsError(f"{where}: tensor {entry.name!r} appears twice")
        data = buckets[entry.bucket][start:end].copy()
        tensors[entry.name] = torch.from_numpy(data).view(DTYPES[entry.dtype]).reshape(entry.shape)
        ends[entry.bucket] = end
    return tensors


def _check_manifest(manifest: WeightsManifest, where: str) -> None:
    expected = manifest_digest(manifest)
    if manifest.digest != expected:
        raise WeightsError(
            f"{where}: manifest: content has digest {expected}, got {manifest.digest}; "
            "it was changed on the way, publish again"
        )


def _check_buckets(manifest: WeightsManifest, buckets: Sequence[Bucket], where: str) -> None:
    if len(buckets) != len(manifest.buckets):
        raise WeightsError(
            f"{where}: expected {len(manifest.buckets)} buckets, got {len(buckets)}; "
            "fetch all of them"
        )
    for entry, bucket in zip(manifest.buckets, buckets, strict=True):
        if bucket.dtype != np.uint8 or bucket.ndim != 1:
            raise WeightsError(
                f"{where}: bucket {entry.index}: expected one row of uint8, "
                f"got {bucket.dtype} with shape {bucket.shape}"
            )
        if bucket.nbytes != entry.num_bytes:
            raise WeightsError(
                f"{where}: bucket {entry.index}: expected {entry.num_bytes} bytes, "
                f"got {bucket.nbytes}"
            )
        got = digest_bytes(bucket)
        if got != entry.digest:
            names = [tensor.name for tensor in manifest.tensors if tensor.bucket == entry.index]
            raise WeightsError(
                f"{where}: bucket {entry.index}: expected digest {entry.digest}, got {got}; "
                f"its tensors ({names[0]!r} to {names[-1]!r}) are damaged, fetch it again"
            )


def _span(
    entry: WeightsTensor, ends: list[int], manifest: WeightsManifest, where: str
) -> tuple[int, int]:
    """Return the tensor's first and last byte in its bucket; tensors must follow one another."""
    if entry.dtype not in DTYPES:
        raise WeightsError(
            f"{where}: tensor {entry.name!r}: expected a dtype of {sorted(DTYPES)}, "
            f"got {entry.dtype!r}"
        )
    if not 0 <= entry.bucket < len(ends):
        raise WeightsError(
            f"{where}: tensor {entry.name!r}: expected a bucket below {len(ends)}, "
            f"got {entry.bucket}"
        )
    num_bytes = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
    end = entry.offset + num_bytes
    limit = manifest.buckets[entry.bucket].num_bytes
    if entry.offset < ends[entry.bucket] or end > limit:
        raise WeightsError(
            f"{where}: tensor {entry.name!r}: expected bytes within {ends[entry.bucket]} and "
            f"{limit} of bucket {entry.bucket}, got {entry.offset} to {end}"
        )
    return entry.offset, end
