"""What the ranks of a gang tell each other: a message and tensors, from rank 0 to all others.

A message is msgpack and nothing received is unpickled. Tensors go as bytes, so that every dtype
passes and no bit changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgpack
import torch
from torch import Tensor
from torch import distributed as dist

_C10D: Any = dist


class Channel:
    """One end of it; rank 0 sends what the others receive, all of them at the same time."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, deadline: timedelta) -> None:
        """`deadline` is that of each exchange; a RuntimeError says that it was missed."""
        self._group: Any = group
        self._device = device
        self._deadline = deadline

    def send(self, message: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> None:
        """Send a message that msgpack can hold, and tensors."""
        specs = [(list(t.shape), str(t.dtype).removeprefix("torch.")) for t in tensors]
        body = bytearray(msgpack.packb({**message, "tensors": specs}, use_bin_type=True))
        self.share(torch.tensor([len(body)]))
        self.share(torch.frombuffer(body, dtype=torch.uint8))
        for tensor in tensors:
            self.share(tensor)

    def receive(self) -> tuple[dict[str, Any], list[Tensor]]:
        """Return what rank 0 sends next; the tensors are on the device."""
        length = int(self.share(torch.zeros(1, dtype=torch.int64)))
        body = self.share(torch.empty(length, dtype=torch.uint8))
        message: dict[str, Any] = msgpack.unpackb(bytes(body.cpu().numpy()), raw=False)
        tensors = [
            self.share(torch.empty(shape, dtype=getattr(torch, dtype), device=self._device))
            for shape, dtype in message.pop("tensors")
        ]
        return message, tensors

    def share(self, tensor: Tensor) -> Tensor:
        """Return rank 0's values on every rank; a contiguous tensor on the device has them."""
        whole = tensor.detach().to(self._device).contiguous()
        if whole.numel():
            options = _C10D.BroadcastOptions()
            options.rootRank, options.rootTensor = 0, 0
            data = whole.reshape(-1).view(torch.uint8)
            self._group.broadcast([data], options).wait(self._deadline)
        return whole


def taken_apart(value: Any, tensors: list[Tensor]) -> Any:
    """Return arguments of a forward as msgpack holds them; their tensors are appended.

    Raises:
        TypeError: an argument is of a kind that no transformer here takes.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, Mapping):
        return {"names": {name: taken_apart(one, tensors) for name, one in value.items()}}
    if isinstance(value, tuple | list):
        return {"several": [taken_apart(one, tensors) for one in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"plain": value}
    raise TypeError(
        f"rollout.sequence_parallel: the transformer was given a {type(value).__name__}: expected "
        "tensors, numbers, text, and tuples or mappings of them. Set it to 1"
    )


def put_together(tree: Mapping[str, Any], tensors: Sequence[Tensor]) -> Any:
    """Return what `taken_apart` was given; a list has become a tuple."""
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "names":
        return {name: put_together(one, tensors) for name, one in value.items()}
    if kind == "several":
        return tuple(put_together(one, tensors) for one in value)
    return value
