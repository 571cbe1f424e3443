"""Take a publish into a live transformer: verify all, fill a spare buffer, then swap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import xxhash
from torch import Tensor, nn

from rlvid.records import WeightsManifest
from rlvid.weights.buckets import Bucket, WeightsError, unpack
from rlvid.weights.checksums import base_digest, tensor_bytes
from rlvid.weights.names import trainable_parameters


def apply_weights(
    manifest: WeightsManifest,
    buckets: Sequence[Bucket],
    transformer: nn.Module,
    *,
    mode: str,
    newer_than: int = -1,
) -> None:
    """Make `transformer` the published policy, or raise and leave it as it was.

    All checks come before the first parameter changes; the swap itself exchanges storage pointers,
    so no forward between two videos can see a mixture. Afterwards the live parameters are hashed
    against the manifest: what samples is what was published.

    Args:
        newer_than: the version held now; a manifest that is not newer is refused.

    Raises:
        WeightsError: version, kind, base model, digests, names, shapes or dtypes do not fit.
    """
    where = f"weights version {manifest.version}"
    if manifest.version <= newer_than:
        raise WeightsError(f"{where}: expected a version above {newer_than}, which is held now")
    if manifest.kind != mode:
        raise WeightsError(f"{where}: kind: expected {mode!r}, got {manifest.kind!r}")
    held_base = base_digest(transformer, mode)
    if manifest.base_digest != held_base:
        raise WeightsError(
            f"{where}: base model: this process holds {held_base}, the publish belongs to "
            f"{manifest.base_digest}; give learner and actors the same model.path and model.dtype"
        )
    live = trainable_parameters(transformer, mode)
    tensors = unpack(manifest, buckets)
    _check_fit(live, tensors, where)
    spare = {name: tensors[name].to(parameter.device) for name, parameter in live.items()}
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.data = spare[name]
    verify_live(manifest, live)


def verify_live(manifest: WeightsManifest, live: Mapping[str, Tensor]) -> None:
    """Hash the live parameters in the manifest's layout and compare with its bucket digests.

    Raises:
        WeightsError: what is live is not what was published.
    """
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


def _check_fit(live: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    missing = sorted(set(live) - set(tensors))
    unknown = sorted(set(tensors) - set(live))
    if missing or unknown:
        raise WeightsError(
            f"{where}: tensors: expected the {len(live)} of this model, got {len(tensors)}; "
            f"missing {missing[:3]}, unknown {unknown[:3]}"
        )
    for name, parameter in live.items():
        got = tensors[name]
        if got.shape != parameter.shape or got.dtype != parameter.dtype:
            raise WeightsError(
                f"{where}: tensor {name!r}: expected {tuple(parameter.shape)} {parameter.dtype}, "
                f"got {tuple(got.shape)} {got.dtype}"
            )
