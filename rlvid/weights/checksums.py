"""xxh3-128 digests of bytes, tensors and models.

They find accidents (a flipped bit, a missing bucket, another base), not an adversary: whoever may
write the object store may also write a manifest.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from rlvid.weights.names import frozen_parameters

CHUNK_BYTES = 512 * 2**10
"""Half of a usual core's second-level cache."""

_lora_bases: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def digest_bytes(data: bytes | np.ndarray[tuple[int], np.dtype[np.uint8]]) -> str:
    """Return the xxh3-128 digest as 32 hex digits."""
    return str(xxhash.xxh3_128_hexdigest(data))


def copy_and_digest(
    source: np.ndarray[tuple[int], np.dtype[np.uint8]],
    target: np.ndarray[tuple[int], np.dtype[np.uint8]],
) -> tuple[str, float, float]:
    """Copy and return the digest of what was written, with the seconds of both.

    By chunks, so that each is hashed while it is still in the cache: memory is read once.
    """
    hasher = xxhash.xxh3_128()
    copy_s = hash_s = 0.0
    for start in range(0, source.nbytes, CHUNK_BYTES):
        written = target[start : start + CHUNK_BYTES]
        began = time.perf_counter()
        np.copyto(written, source[start : start + CHUNK_BYTES])
        copied = time.perf_counter()
        hasher.update(written)
        copy_s += copied - began
        hash_s += time.perf_counter() - copied
    return str(hasher.hexdigest()), copy_s, hash_s


def tensor_bytes(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return the tensor's bytes on the host, [num_bytes] uint8; a view where it can be one."""
    flat = tensor.detach().contiguous().reshape(-1).cpu()
    return flat.view(torch.uint8).numpy()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return one digest over names, shapes, dtypes and values, in the order of sorted names."""
    hasher = xxhash.xxh3_128()
    for name in sorted(tensors):
        tensor = tensors[name]
        hasher.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        hasher.update(tensor_bytes(tensor))
    return str(hasher.hexdigest())


def base_digest(transformer: nn.Module, mode: str) -> str:
    """Return the digest of what a publish stands on.

    lora: the values of the frozen base, since the same adapter on another base is another policy.
    It is computed once per module, before ZeRO cuts the parameters. full: names, shapes and dtypes
    only, since every value is published.
    """
    if mode == "full":
        layout = "\n".join(
            f"{name}|{tuple(parameter.shape)}|{parameter.dtype}"
            for name, parameter in sorted(transformer.named_parameters())
        )
        return digest_bytes(layout.encode())
    if transformer not in _lora_bases:
        _lora_bases[transformer] = digest_tensors(frozen_parameters(transformer))
    return _lora_bases[transformer]
