"""Weights on their way from the learner to the actors: names, buckets, checksums, manifest."""

from rlvid.weights.apply import apply_weights
from rlvid.weights.buckets import Bucket, WeightsError, pack, unpack
from rlvid.weights.checksums import base_digest, digest_bytes, digest_tensors
from rlvid.weights.manifest import manifest_digest, manifest_from_bytes, manifest_to_bytes
from rlvid.weights.names import trainable_parameters

__all__ = [
    "Bucket",
    "WeightsError",
    "apply_weights",
    "base_digest",
    "digest_bytes",
    "digest_tensors",
    "manifest_digest",
    "manifest_from_bytes",
    "manifest_to_bytes",
    "pack",
    "trainable_parameters",
    "unpack",
]
