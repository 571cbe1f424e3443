"""Buckets and manifest: what goes in comes out, and nothing damaged comes through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlvid.records import WeightsManifest
from rlvid.weights import (
    Bucket,
    WeightsError,
    manifest_digest,
    manifest_from_bytes,
    manifest_to_bytes,
    pack,
    unpack,
)


def _tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(5, 3, generator=generator),
        "b.weight": torch.randn(7, generator=generator).to(torch.bfloat16),
        "scalar": torch.tensor(1.5),
        "c.weight": torch.randn(40, generator=generator),
    }


def _packed(bucket_bytes: int = 100) -> tuple[WeightsManifest, list[Bucket]]:
    return pack(
        _tensors(),
        version=3,
        parent_version=2,
        kind="full",
        base_digest="base",
        bucket_bytes=bucket_bytes,
    )


@pytest.mark.parametrize("bucket_bytes", [1, 100, 10**6])
def test_unpack_returns_what_was_packed_for_every_bucket_size(bucket_bytes: int) -> None:
    """Bucket size is a matter of transport and must not show in the values."""
    manifest, buckets = _packed(bucket_bytes)
    got = unpack(manifest, buckets)
    assert list(got) == list(_tensors())
    for name, tensor in _tensors().items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor)


def test_buckets_stay_below_their_size_unless_one_tensor_is_larger() -> None:
    """Peak memory of a gather is one bucket."""
    manifest, buckets = _packed(100)
    alone = {
        bucket: [tensor for tensor in manifest.tensors if tensor.bucket == bucket]
        for bucket in range(len(buckets))
    }
    assert len(buckets) > 1
    assert all(bucket.nbytes <= 100 or len(alone[i]) == 1 for i, bucket in enumerate(buckets))


def test_every_flipped_bit_is_refused_and_the_bucket_named() -> None:
    """A damaged bundle that loads would look like a bad policy for weeks."""
    manifest, buckets = _packed()
    for index, bucket in enumerate(buckets):
        for position in range(0, bucket.nbytes, 13):
            damaged = [other.copy() for other in buckets]
            damaged[index][position] ^= 1 << (position % 8)
            with pytest.raises(WeightsError, match=f"bucket {index}: expected digest"):
                unpack(manifest, damaged)


def test_missing_bucket_is_refused() -> None:
    """A lost object must not leave half of the old policy in place."""
    manifest, buckets = _packed()
    with pytest.raises(WeightsError, match=f"expected {len(buckets)} buckets"):
        unpack(manifest, buckets[:-1])


def test_truncated_bucket_is_refused() -> None:
    """Size is checked before the digest, so the message says which one is short."""
    manifest, buckets = _packed()
    with pytest.raises(WeightsError, match=r"bucket 0: expected \d+ bytes"):
        unpack(manifest, [buckets[0][:-1], *buckets[1:]])


def test_reordered_buckets_are_refused() -> None:
    """Buckets of equal size would otherwise swap their tensors silently."""
    tensors = {"a": torch.zeros(8), "b": torch.ones(8)}
    manifest, buckets = pack(
        tensors, version=1, parent_version=0, kind="full", base_digest="", bucket_bytes=32
    )
    with pytest.raises(WeightsError, match="bucket 0"):
        unpack(manifest, buckets[::-1])


def test_changed_manifest_is_refused() -> None:
    """The digest covers versions, names, shapes, dtypes and offsets."""
    manifest, buckets = _packed()
    first = manifest.tensors[0]
    changes = [
        {"version": 4},
        {"parent_version": 1},
        {"kind": "lora"},
        {"base_digest": "other"},
        {"tensors": (replace(first, name="x"), *manifest.tensors[1:])},
        {"tensors": (replace(first, shape=(3, 5)), *manifest.tensors[1:])},
        {"tensors": (replace(first, dtype="bfloat16"), *manifest.tensors[1:])},
        {"tensors": manifest.tensors[1:]},
    ]
    for change in changes:
        with pytest.raises(WeightsError, match="manifest"):
            unpack(replace(manifest, **change), buckets)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": "int7"}, "expected a dtype"),
        ({"bucket": 9}, "expected a bucket below"),
        ({"offset": 10**6}, "expected bytes within"),
        ({"shape": (10**6,)}, "expected bytes within"),
        ({"offset": -16}, "expected bytes within"),
    ],
)
def test_a_consistent_but_impossible_manifest_is_refused(
    change: dict[str, object], says: str
) -> None:
    """A digest says that nothing changed, not that the publisher was right."""
    manifest, buckets = _packed()
    odd = replace(manifest.tensors[0], **change)  # type: ignore[arg-type]
    wrong = replace(manifest, tensors=(odd, *manifest.tensors[1:]))
    wrong = replace(wrong, digest=manifest_digest(wrong))
    with pytest.raises(WeightsError, match=says):
        unpack(wrong, buckets)


def test_manifest_survives_msgpack() -> None:
    """It goes to the actors and into checkpoints in this form."""
    manifest, _ = _packed()
    assert manifest_from_bytes(manifest_to_bytes(manifest)) == manifest


def test_damaged_manifest_bytes_are_refused() -> None:
    """Whatever byte is hit, the answer is a ValueError."""
    data = manifest_to_bytes(_packed()[0])
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(ValueError, match="weights manifest"):
            manifest_from_bytes(bytes(damaged))


def test_same_weights_have_the_same_digest() -> None:
    """A learner that is restored publishes its version again; actors must see no difference."""
    assert _packed()[0].digest == _packed()[0].digest
