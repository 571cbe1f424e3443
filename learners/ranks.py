"""What the learner's ranks tell each other, over torch.distributed. Every call is a collective."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


class Ranks:
    """The gang: who am I, and small sums, maxima and JSON values over everybody.

    Consecutive ranks that share the tokens of their clips (`learner.sequence_parallel`) have the
    same rows, and are one where rows are dealt out and added up.
    """

    def __init__(self, device: torch.device, *, sequence_parallel: int = 1) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.data_rank = self.rank // sequence_parallel
        """Whose rows this rank trains, of `data_parallel`."""
        self.data_parallel = self.world_size // sequence_parallel
        self._sequence_parallel = sequence_parallel
        self._device = device

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over ranks, added in float64; of ranks with the same rows one counts."""
        total = self._reduce(values, dist.ReduceOp.SUM)
        return [value / self._sequence_parallel for value in total]

    def max(self, values: Sequence[float]) -> list[float]:
        return self._reduce(values, dist.ReduceOp.MAX)

    def gather_json(self, value: Any) -> list[Any]:
        """Return every rank's value, in order of rank. JSON: nothing received is unpickled."""
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = int(self.max([float(data.numel())])[0])
        padded = torch.full((length,), ord(" "), dtype=torch.uint8)
        padded[: data.numel()] = data
        received = [torch.empty_like(padded, device=self._device) for _ in range(self.world_size)]
        dist.all_gather(received, padded.to(self._device))
        return [json.loads(bytes(part.cpu().numpy())) for part in received]

    def broadcast(self, tensor: Tensor, owner: int) -> Tensor:
        """Fill `tensor` with the owner's values and return it."""
        sent = tensor.to(self._device).contiguous()
        dist.broadcast(sent, owner)
        return sent

    def barrier(self) -> None:
        self.sum([0.0])

    def _reduce(self, values: Sequence[float], operation: Any) -> list[float]:
        if not values:
            return []
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor, operation)
        reduced: list[float] = tensor.tolist()
        return reduced
