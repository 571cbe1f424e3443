"""Weights on their way from the learner to the actors: names, buckets, checksums, manifest."""

from rlvid.weights.buckets import Bucket, make_manifest, pack, unpack
from rlvid.weights.canary import canary_tolerance, check_canary
from rlvid.weights.checksums import base_digest, digest_bytes, digest_tensors
from rlvid.weights.errors import WeightsError
from rlvid.weights.holder import WeightsHolder, apply_weights
from rlvid.weights.layout import Layout, TensorSpec, plan_layout
from rlvid.weights.manifest import manifest_digest, manifest_from_bytes, manifest_to_bytes
from rlvid.weights.names import count_bound, trainable_parameters
from rlvid.weights.parts import (
    PublishHead,
    PublishPart,
    check_changed,
    content_digest,
    merge_digests,
    merge_parts,
    owner_of,
)
from rlvid.weights.sources import WeightsPart

__all__ = [
    "Bucket",
    "Layout",
    "PublishHead",
    "PublishPart",
    "TensorSpec",
    "WeightsError",
    "WeightsHolder",
    "WeightsPart",
    "apply_weights",
    "base_digest",
    "canary_tolerance",
    "check_canary",
    "check_changed",
    "content_digest",
    "count_bound",
    "digest_bytes",
    "digest_tensors",
    "make_manifest",
    "manifest_digest",
    "manifest_from_bytes",
    "manifest_to_bytes",
    "merge_digests",
    "merge_parts",
    "owner_of",
    "pack",
    "plan_layout",
    "trainable_parameters",
    "unpack",
]
