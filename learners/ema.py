"""An exponential moving average of what is trained, float32, each parameter held by one rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rlvid.config import EmaConfig
from rlvid.learners.ranks import Ranks
from rlvid.learners.zero_engine import ZeroEngine
from rlvid.weights import TensorSpec


class Ema:
    """average <- decay * average + (1 - decay) * value, every `every` optimiser steps.

    Parameter i lives on rank i mod world size, so the average costs 4 bytes a parameter over the
    whole gang, whatever the ZeRO stage.
    """

    def __init__(self, engine: ZeroEngine, config: EmaConfig) -> None:
        """Start from the engine's present values; a collective."""
        self._engine = engine
        self._config = config
        self._average: dict[str, Tensor] = {}
        self._shapes: dict[str, torch.Size] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._index: dict[str, int] = {}
        for index, (name, value) in enumerate(engine.full_parameters()):
            self._shapes[name], self._dtypes[name] = value.shape, value.dtype
            self._index[name] = index
            if self._is_mine(index):
                self._average[name] = value.float().clone()

    def after_step(self, step: int) -> None:
        """Average after optimiser step `step` (0-based) where it is due; a collective then."""
        if (step + 1) % self._config.every:
            return
        for index, (name, value) in enumerate(self._engine.full_parameters(master=True)):
            if self._is_mine(index):
                self._average[name].lerp_(value, 1.0 - self._config.decay)

    @property
    def ranks(self) -> Ranks:
        return self._engine.ranks

    @property
    def needs_all_ranks(self) -> bool:
        """`whole` is a collective: each average lives on one rank."""
        return True

    def specs(self) -> list[TensorSpec]:
        """Return name, shape and live dtype of every average, in sorted order."""
        return [
            TensorSpec(name=name, shape=tuple(shape), dtype=self._dtypes[name])
            for name, shape in self._shapes.items()
        ]

    @contextmanager
    def whole(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Within the block these averages are here, in the live dtype; a collective."""
        yield {name: self._broadcast(name) for name in names}

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, average in the live dtype), sorted; a collective like the engine's."""
        for name in self._shapes:
            yield name, self._broadcast(name)

    def _broadcast(self, name: str) -> Tensor:
        value = self._average.get(name)
        if value is None:
            value = torch.empty(self._shapes[name], device=self._engine.device)
        owner = self._index[name] % self.ranks.world_size
        return self.ranks.broadcast(value, owner).to(self._dtypes[name])

    def save(self, path: Path) -> None:
        """Write this rank's averages."""
        from safetensors.torch import save_file

        save_file({name: value.cpu() for name, value in self._average.items()}, path)

    def load(self, path: Path) -> None:
        """Read what `save` wrote on the same rank of a gang of the same size."""
        from safetensors.torch import load_file

        loaded = load_file(path)
        if set(loaded) != set(self._average):
            raise ValueError(
                f"checkpoint {path}: expected averages of {len(self._average)} parameters of this "
                f"rank, got {len(loaded)}; resume with the same number of ranks"
            )
        for name, value in self._average.items():
            value.copy_(loaded[name])

    def _is_mine(self, index: int) -> bool:
        return index % self._engine.ranks.world_size == self._engine.ranks.rank
