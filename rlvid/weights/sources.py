"""Where an actor gets the bytes of a publish from: one small interface over all transports.

What arrives at `stage` beside the manifest is a sequence of parts. Of the object store these are
the buckets themselves, mapped read-only; the other transports send one part that says where to
look, which knows how to open itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from rlvid.records import WeightsManifest
from rlvid.weights.buckets import Bucket, check_buckets
from rlvid.weights.errors import WeightsError


class BucketSource(Protocol):
    """The bytes of one publish, bucket by bucket."""

    def view(self, index: int) -> Bucket | None:
        """Return the bytes where they lie on the host and stay; None where they can only be
        received once."""

    def receive(self, index: int, out: Tensor) -> None:
        """Write the bytes into `out`, [num_bytes] uint8; for sources without views.

        Raises:
            WeightsError: they did not come, or not in time.
        """

    def close(self) -> None:
        """Let go of files and connections; the bytes may go away after this."""


@runtime_checkable
class WeightsPart(Protocol):
    """Says where the bytes of a publish are; small, and sent to the actors."""

    def open(self, manifest: WeightsManifest) -> BucketSource:
        """Reach the bytes.

        Raises:
            WeightsError: there are none, or those of another publish.
        """


class HostBuckets:
    """Buckets that lie in this process's memory, or are mapped into it."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self._buckets = buckets

    def view(self, index: int) -> Bucket:
        return self._buckets[index]

    def receive(self, index: int, out: Tensor) -> None:
        raise AssertionError("buckets on the host are read by view()")

    def close(self) -> None:
        self._buckets = ()


def open_source(manifest: WeightsManifest, parts: Sequence[Bucket | WeightsPart]) -> BucketSource:
    """Return the bytes behind the parts.

    Raises:
        WeightsError: the parts cannot be of this manifest.
    """
    if len(parts) == 1 and isinstance(parts[0], WeightsPart):
        return parts[0].open(manifest)
    buckets = [part for part in parts if not isinstance(part, WeightsPart)]
    if len(buckets) != len(parts):
        raise WeightsError(
            f"weights version {manifest.version}: expected buckets or one part that says where "
            f"they are, got {len(parts)} parts of both kinds"
        )
    check_buckets(manifest, buckets)
    return HostBuckets(buckets)
