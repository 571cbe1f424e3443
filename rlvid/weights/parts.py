"""A publish made by several ranks: each hashes the buckets it packed; the parts make a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rlvid.records import WeightsManifest
from rlvid.weights.buckets import make_manifest
from rlvid.weights.checksums import digest_bytes
from rlvid.weights.errors import WeightsError
from rlvid.weights.layout import DTYPES, Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishHead:
    """What every rank knows of a publish before a byte is hashed; equal on all of them."""

    incarnation: int
    version: int
    kind: str
    base_digest: str
    num_bound: int
    canary_tolerance: float
    layout: Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishPart:
    """One rank's part."""

    head: PublishHead
    rank: int
    digests: Mapping[int, str]
    """Of the buckets that this rank packed, by index; no two ranks have one in common."""
    gather_s: float
    """Seconds in collectives that make sharded parameters whole."""
    copy_s: float
    """Seconds of copying them into host buffers."""
    hash_s: float
    """Seconds of hashing those, beside whatever the rank did then."""

    def metrics(self) -> dict[str, float]:
        """Return the seconds by the names of the metrics table."""
        return {
            "weights/gather/seconds": self.gather_s,
            "weights/d2h/seconds": self.copy_s,
            "weights/hash/seconds": self.hash_s,
        }


def owner_of(bucket: int, world_size: int) -> int:
    """Return the rank that packs a bucket; in turn, so that copies and hashes run side by side."""
    return bucket % world_size


def merge_digests(head: PublishHead, parts: Sequence[Mapping[int, str]]) -> WeightsManifest:
    """Return the manifest of a whole publish from every rank's digests.

    Raises:
        WeightsError: a bucket is in no part, or in two.
    """
    digests: dict[int, str] = {}
    for part in parts:
        twice = sorted(set(part) & set(digests))
        if twice:
            raise WeightsError(f"publishing version {head.version}: two ranks packed {twice[:3]}")
        digests |= part
    expected = set(range(len(head.layout.bucket_bytes)))
    if set(digests) != expected:
        raise WeightsError(
            f"publishing version {head.version}: expected {len(expected)} buckets, "
            f"got {len(digests)}; no rank packed {sorted(expected - set(digests))[:3]}"
        )
    return make_manifest(
        head.layout,
        [digests[index] for index in sorted(digests)],
        incarnation=head.incarnation,
        version=head.version,
        parent_version=head.version - 1,
        kind=head.kind,
        base_digest=head.base_digest,
        num_bound=head.num_bound,
        canary_limit=head.canary_tolerance,
    )


def merge_parts(parts: Sequence[PublishPart]) -> WeightsManifest:
    """Return the manifest of a whole publish.

    Raises:
        WeightsError: the parts are of different publishes, or do not make a whole.
    """
    for part in parts:
        if part.head != parts[0].head:
            raise WeightsError(
                f"publishing version {parts[0].head.version}: rank {part.rank} has another one "
                f"(version {part.head.version} of incarnation {part.head.incarnation}, or another "
                "layout); all ranks must read one recipe"
            )
    return merge_digests(parts[0].head, [part.digests for part in parts])


def content_digest(manifest: WeightsManifest) -> str:
    """Return a digest of names and values alone: equal for equal weights of any version."""
    entries = [f"{t.name}|{t.shape}|{t.dtype}|{t.bucket}|{t.offset}" for t in manifest.tensors]
    return digest_bytes("\n".join([*entries, *(b.digest for b in manifest.buckets)]).encode())


def check_changed(
    before: WeightsManifest, after: WeightsManifest, *, num_steps: int, update_size: float
) -> None:
    """Refuse a publish that cannot be what the learner's steps made of the one before.

    Args:
        num_steps: optimiser steps between the two.
        update_size: sum of the learning rates of those with a gradient, which is how far Adam moves
            an element; it shows in an element of size 1 from the dtype's resolution on.

    Raises:
        WeightsError: steps were taken and no byte changed, or none was taken and some did.
    """
    is_same = content_digest(before) == content_digest(after)
    where = f"publishing version {after.version}"
    if num_steps == 0 and not is_same:
        raise WeightsError(
            f"{where}: the weights differ from version {before.version} without an optimiser step; "
            "something else writes into the learner's parameters"
        )
    if is_same and update_size >= _resolution(after):
        raise WeightsError(
            f"{where}: {num_steps} optimiser steps with learning rates of {update_size:.3g} "
            f"together changed no byte since version {before.version}; the trained parameters are "
            "not the published ones"
        )


def _resolution(manifest: WeightsManifest) -> float:
    """Return the coarsest relative step of the published dtypes."""
    dtypes = {DTYPES[entry.dtype] for entry in manifest.tensors}
    return max(torch.finfo(dtype).eps for dtype in dtypes)
