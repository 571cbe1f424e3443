"""How many bytes of tensors are alive at once while something is computed.

Every operation's result is seen as it is made, and its storage as it goes, so the count is that of
a device without fragmentation and work space. Nothing of it depends on the device or on the values:
on torch's fake and meta tensors a forward of any size is counted in seconds, without its memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts within its block; `peak` is the most that was alive beside what was there before."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """`known` are the tensors that are there before: parameters, buffers and inputs."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = list(known)
        self._seen = {_key(tensor) for tensor in self._known}
        self.live: int = 0
        """Bytes at this moment."""
        self.peak: int = 0
        """Bytes at most."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _key(leaf) not in self._seen:
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        self._seen.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, num_bytes: int) -> None:
        self._seen.discard(key)
        self.live -= num_bytes


def _key(tensor: Tensor) -> int:
    """Return what views of one storage share."""
    return int(tensor.untyped_storage()._cdata)
