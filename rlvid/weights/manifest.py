"""The manifest of a weights publish: its digest and its msgpack form."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgpack

from rlvid.records import WeightsBucket, WeightsManifest, WeightsTensor
from rlvid.weights.checksums import digest_bytes

MAX_MANIFEST_BYTES = 64 * 2**20


def manifest_digest(manifest: WeightsManifest) -> str:
    """Return xxh3-128 over everything in the manifest but its own digest."""
    tree = _tree(manifest)
    del tree["digest"]
    return digest_bytes(msgpack.packb(tree, use_bin_type=True))


def manifest_to_bytes(manifest: WeightsManifest) -> bytes:
    return bytes(msgpack.packb(_tree(manifest), use_bin_type=True))


def manifest_from_bytes(data: bytes) -> WeightsManifest:
    """Return the manifest that `manifest_to_bytes` wrote.

    Raises:
        ValueError: not msgpack, missing or unknown fields, wrong types, or a digest that does not
            fit the content.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ValueError(
            f"weights manifest: expected at most {MAX_MANIFEST_BYTES} bytes, got {len(data)}"
        )
    try:
        tree = msgpack.unpackb(data, raw=False)
        manifest = _from_tree(tree)
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"weights manifest: {len(data)} bytes are no manifest ({error}); publish again"
        ) from error
    expected = manifest_digest(manifest)
    if manifest.digest != expected or manifest_to_bytes(manifest) != data:
        raise ValueError(
            f"weights manifest: version {manifest.version}: content has digest {expected}, "
            f"got {manifest.digest}; it was changed on the way, publish again"
        )
    return manifest


def _tree(manifest: WeightsManifest) -> dict[str, Any]:
    """Return what is written; `dataclasses.asdict` would copy each leaf of thousands of tensors."""
    return {
        **_fields(manifest),
        "tensors": [_fields(tensor) for tensor in manifest.tensors],
        "buckets": [_fields(bucket) for bucket in manifest.buckets],
    }


def _fields(record: WeightsManifest | WeightsTensor | WeightsBucket) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _from_tree(tree: dict[str, Any]) -> WeightsManifest:
    tensors = tuple(
        WeightsTensor(**{**entry, "shape": tuple(entry["shape"])}) for entry in tree["tensors"]
    )
    buckets = tuple(WeightsBucket(**entry) for entry in tree["buckets"])
    return WeightsManifest(**{**tree, "tensors": tensors, "buckets": buckets})
