"""Moving averages of what is trained, float32, each parameter held by one rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rlvid.algorithms.old_policy import move_old_policy
from rlvid.config import EmaConfig
from rlvid.learners.fragments import Piece, PieceReader, check_names, write_pieces
from rlvid.learners.ranks import Ranks
from rlvid.learners.zero_engine import ZeroEngine
from rlvid.weights import TensorSpec

STEM = "ema"


class Average:
    """average <- decay * average + (1 - decay) * value, when told to.

    Parameter i lives on rank i mod world size, so the average costs 4 bytes a parameter over the
    whole gang, whatever the ZeRO stage.
    """

    def __init__(self, engine: ZeroEngine, *, stem: str) -> None:
        """Start from the engine's present values; a collective.

        Args:
            stem: of its files in a checkpoint.
        """
        self._engine = engine
        self._stem = stem
        self._average: dict[str, Tensor] = {}
        self._shapes: dict[str, torch.Size] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._index: dict[str, int] = {}
        for index, (name, value) in enumerate(engine.full_parameters()):
            self._shapes[name], self._dtypes[name] = value.shape, value.dtype
            self._index[name] = index
            if self._is_mine(index):
                self._average[name] = value.float().clone()

    def move(self, decay: float) -> None:
        """Take the present values in; a collective."""
        for index, (name, value) in enumerate(self._engine.full_parameters(master=True)):
            if self._is_mine(index):
                move_old_policy({name: self._average[name]}, {name: value}, decay=decay)

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
        write_pieces(folder, self._stem, self.ranks.rank, pieces)

    def load(self, folder: Path) -> None:
        """Read this rank's averages of what any number of ranks wrote."""
        with PieceReader(folder, self._stem) as reader:
            check_names(reader, "average", self._shapes, f"checkpoint {folder}")
            for name, value in self._average.items():
                reader.fill("average", name, 0, value.view(-1))

    def _is_mine(self, index: int) -> bool:
        return index % self._engine.ranks.world_size == self._engine.ranks.rank


class Ema(Average):
    """The average that is exported: moves by one decay, every `every` optimiser steps."""

    def __init__(self, engine: ZeroEngine, config: EmaConfig) -> None:
        """Start from the engine's present values; a collective."""
        super().__init__(engine, stem=STEM)
        self._config = config

    def after_step(self, step: int) -> None:
        """Average after optimiser step `step` (0-based) where it is due; a collective then."""
        if (step + 1) % self._config.every == 0:
            self.move(self._config.decay)
