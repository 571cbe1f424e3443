"""Rotary positions of blocks of frames that do not begin at frame 0, for `causal_wan`.

Letters: B batch, S tokens, A heads, D size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """Rotations of a run of tokens: cos and sin, each [1, S, 1, D / 2]."""

    cos: Tensor
    sin: Tensor

    def rotate(self, states: Tensor) -> Tensor:
        """[B, S, A, D] -> the same; neighbouring channels are a pair, as in diffusers' Wan."""
        even, odd = states.unflatten(-1, (-1, 2)).unbind(-1)
        rotated = (even * self.cos - odd * self.sin, even * self.sin + odd * self.cos)
        return torch.stack(rotated, dim=-1).flatten(-2).type_as(states)

    def tokens(self, start: int, stop: int) -> Rotary:
        return Rotary(self.cos[:, start:stop], self.sin[:, start:stop])


def rotary_at(rope: Any, places: Sequence[int], frames: int, height: int, width: int) -> Rotary:
    """Return the rotations of blocks at `places`; frames, height and width count tokens.

    Read from the module's own table, whose rows are positions and whose columns are time, height
    and width, each value twice.
    """
    rows = rope.freqs_cos.shape[0]
    end = (max(places) + 1) * frames
    if end > rows:
        raise ValueError(
            f"causal: frame {end - 1} lies beyond the transformer's rotary table of {rows} frames "
            "(rope_max_seq_len). Set causal.positions to 'window' with a window that fits."
        )
    device = rope.freqs_cos.device
    starts = torch.tensor([place * frames for place in places], device=device)
    in_time = (starts[:, None] + torch.arange(frames, device=device)).flatten()
    grid = (len(in_time), height, width)

    def spread(table: Tensor) -> Tensor:
        time, down, across = table[:, ::2].split(
            [rope.t_dim // 2, rope.h_dim // 2, rope.w_dim // 2], dim=1
        )
        parts = (
            time[in_time].view(-1, 1, 1, time.shape[1]).expand(*grid, -1),
            down[:height].view(1, -1, 1, down.shape[1]).expand(*grid, -1),
            across[:width].view(1, 1, -1, across.shape[1]).expand(*grid, -1),
        )
        return torch.cat(parts, dim=-1).flatten(0, 2)[None, :, None]

    return Rotary(spread(rope.freqs_cos), spread(rope.freqs_sin))
