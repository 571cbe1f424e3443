"""xxh3-128 digests of bytes, tensors and models.

They find accidents (a flipped bit, a missing bucket, another base), not an adversary: whoever may
write the object store may also write a manifest.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from rlvid.weights.names import frozen_parameters

_lora_bases: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def digest_bytes(data: bytes | np.ndarray[tuple[int], np.dtype[np.uint8]]) -> str:
    """Return the xxh3-128 digest as 32 hex digits."""
    return str(xxhash.xxh3_128_hexdigest(data))


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
