"""Checks of a live transformer against a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
import xxhash
from torch import Tensor

from rlvid.records import WeightsManifest
from rlvid.weights.checksums import tensor_bytes
from rlvid.weights.errors import WeightsError
from rlvid.weights.layout import DTYPES


def verify_live(manifest: WeightsManifest, live: Mapping[str, Tensor]) -> None:
    """Hash the live parameters in the manifest's layout and compare with its bucket digests.

    Raises:
        WeightsError: what is live is not what was published.
    """
    device = next(iter(live.values())).device
    # On a stream of its own the copies to the host pass beside the sampling, not in its way.
    aside = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()
    with aside:
        _compare(manifest, live)


def _compare(manifest: WeightsManifest, live: Mapping[str, Tensor]) -> None:
    hashers = [xxhash.xxh3_128() for _ in manifest.buckets]
    ends = [0] * len(hashers)
    for entry in manifest.tensors:
        data = tensor_bytes(live[entry.name])
        hashers[entry.bucket].update(bytes(entry.offset - ends[entry.bucket]))
        hashers[entry.bucket].update(data)
        ends[entry.bucket] = entry.offset + data.nbytes
    for bucket, hasher in zip(manifest.buckets, hashers, strict=True):
        if hasher.hexdigest() != bucket.digest:
            raise WeightsError(
                f"weights version {manifest.version}: live parameters of bucket {bucket.index}: "
                f"expected digest {bucket.digest}, got {hasher.hexdigest()}; "
                "the model changed after the publish was taken, fetch it again"
            )


def check_fit(manifest: WeightsManifest, live: Mapping[str, Tensor]) -> None:
    """Refuse a publish that is not, name by name, of this model.

    Raises:
        WeightsError: names, shapes or dtypes differ.
    """
    where = f"weights version {manifest.version}"
    entries = {entry.name: entry for entry in manifest.tensors}
    missing = sorted(set(live) - set(entries))
    unknown = sorted(set(entries) - set(live))
    if missing or unknown:
        raise WeightsError(
            f"{where}: tensors: expected the {len(live)} of this model, got {len(entries)}; "
            f"missing {missing[:3]}, unknown {unknown[:3]}"
        )
    for name, parameter in live.items():
        got = entries[name]
        if got.shape != tuple(parameter.shape) or DTYPES[got.dtype] != parameter.dtype:
            raise WeightsError(
                f"{where}: tensor {name!r}: expected {tuple(parameter.shape)} {parameter.dtype}, "
                f"got {got.shape} {DTYPES[got.dtype]}"
            )
