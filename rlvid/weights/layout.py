"""Where each tensor of a publish lies: planned by the learner, checked by the actors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from rlvid.records import WeightsManifest, WeightsTensor
from rlvid.weights.errors import WeightsError
from rlvid.weights.manifest import manifest_digest

ALIGNMENT = 64
"""Bytes; every tensor starts at a multiple. Vector kernels peel at other addresses and then add in
another order, so two buffers of the same weights could sample two videos."""

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor to be published; of a sharded one, name, whole shape and dtype are known."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Places of all tensors of a publish."""

    tensors: tuple[WeightsTensor, ...]
    bucket_bytes: tuple[int, ...]
    """Size of each bucket."""

    def in_bucket(self, index: int) -> list[WeightsTensor]:
        return [entry for entry in self.tensors if entry.bucket == index]


def plan_layout(specs: Iterable[TensorSpec], bucket_bytes: int) -> Layout:
    """Lay tensors into buckets in the given order.

    Args:
        bucket_bytes: a bucket is closed when the next tensor would go beyond; a larger tensor gets
            a bucket of its own size.
    """
    if bucket_bytes < 1:
        raise ValueError(f"weights: bucket_bytes must be at least 1, got {bucket_bytes}")
    entries: list[WeightsTensor] = []
    sizes: list[int] = []
    for spec in specs:
        num_bytes = math.prod(spec.shape) * spec.dtype.itemsize
        offset = -(-sizes[-1] // ALIGNMENT) * ALIGNMENT if sizes else 0
        if not sizes or (sizes[-1] and offset + num_bytes > bucket_bytes):
            sizes.append(0)
            offset = 0
        sizes[-1] = offset + num_bytes
        entries.append(
            WeightsTensor(
                name=spec.name,
                shape=spec.shape,
                dtype=str(spec.dtype).removeprefix("torch."),
                bucket=len(sizes) - 1,
                offset=offset,
            )
        )
    return Layout(tensors=tuple(entries), bucket_bytes=tuple(sizes))


def check_manifest(manifest: WeightsManifest) -> None:
    """Refuse a manifest that was changed on the way or cannot be.

    Raises:
        WeightsError: its digest, or a tensor that overlaps another, lies outside its bucket,
            appears twice or has an unknown dtype.
    """
    where = f"weights version {manifest.version}"
    expected = manifest_digest(manifest)
    if manifest.digest != expected:
        raise WeightsError(
            f"{where}: manifest: content has digest {expected}, got {manifest.digest}; "
            "it was changed on the way, publish again"
        )
    for place, bucket in enumerate(manifest.buckets):
        if bucket.index != place:
            raise WeightsError(f"{where}: bucket {place}: expected index {place}, got {bucket}")
    ends = [0] * len(manifest.buckets)
    names: set[str] = set()
    for entry in manifest.tensors:
        end = _end_of(entry, ends, manifest, where)
        if entry.name in names:
            raise WeightsError(f"{where}: tensor {entry.name!r} appears twice")
        names.add(entry.name)
        ends[entry.bucket] = end


def tensor_bytes_of(entry: WeightsTensor) -> int:
    return math.prod(entry.shape) * DTYPES[entry.dtype].itemsize


def _end_of(
    entry: WeightsTensor, ends: Sequence[int], manifest: WeightsManifest, where: str
) -> int:
    """Return the byte after the tensor in its bucket; tensors must follow one another."""
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
    if entry.offset % DTYPES[entry.dtype].itemsize or min(entry.shape, default=0) < 0:
        raise WeightsError(
            f"{where}: tensor {entry.name!r}: expected an aligned offset and a shape without "
            f"negative sizes, got {entry.offset} and {entry.shape}"
        )
    end = entry.offset + tensor_bytes_of(entry)
    limit = manifest.buckets[entry.bucket].num_bytes
    if entry.offset < ends[entry.bucket] or end > limit:
        raise WeightsError(
            f"{where}: tensor {entry.name!r}: expected bytes within {ends[entry.bucket]} and "
            f"{limit} of bucket {entry.bucket}, got {entry.offset} to {end}"
        )
    return end
