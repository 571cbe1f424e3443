"""An exponential moving average of what is trained, float32, each parameter held by one rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rlvid.config import EmaConfig
from rlvid.learners.fragments import Piece, PieceReader, check_names, write_pieces
from rlvid.learners.ranks import Ranks
from rlvid.learners.zero_engine import ZeroEngine
from rlvid.weights import TensorSpec

STEM = "ema"


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

    def save(self, folder: Path) -> None:
        """Write this rank's averages."""
        pieces = (Piece("average", name, 0, v.view(-1)) for name, v in self._average.items())
        write_pieces(folder, STEM, self.ranks.rank, pieces)

    def load(self, folder: Path) -> None:
        """Read this rank's averages of what any number of ranks wrote."""
        with PieceReader(folder, STEM) as reader:
            check_names(reader, "average", self._shapes, f"checkpoint {folder}")
            for name, value in self._average.items():
                reader.fill("average", name, 0, value.view(-1))

    def _is_mine(self, index: int) -> bool:
        return index % self._engine.ranks.world_size == self._engine.ranks.rank
