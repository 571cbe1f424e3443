"""Equal blocks are left out while their first is counted, and all are back afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rlvid.models.one_of_each import one_of_each


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LayerNorm(4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Model(nn.Module):
    """Three blocks of a kind and one of another, and blocks of a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 6)])
        self.encoder = Encoder()

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        return x


def test_the_first_of_each_kind_is_left_and_all_are_back() -> None:
    model, given = Model(), torch.randn(2, 4)
    whole, blocks = model(given), list(model.blocks)
    with one_of_each(model) as times:
        assert times == {"blocks.0": 3, "blocks.1": 1, "encoder.layers.0": 2}
        assert list(model.blocks) == [blocks[0], blocks[3]]
        assert set(times) <= {name for name, _ in model.named_modules()}
    assert list(model.blocks) == blocks
    assert torch.equal(model(given), whole)


def test_blocks_are_back_after_an_error() -> None:
    model = Model()
    with pytest.raises(RuntimeError, match="shape"), one_of_each(model):
        model(torch.randn(2, 5))
    assert len(model.blocks) == 4
