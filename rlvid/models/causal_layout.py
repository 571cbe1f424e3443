"""Which block of latent frames attends to which: one record that the masked and the cached forward
of `rlvid.models.causal_wan` share, so that training and streaming cannot differ in it. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Positions = Literal["absolute", "window"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLayout:
    """Blocks of frames, each seen by itself and by later ones.

    Inside a block attention is bidirectional. With a window, block i sees the first `sink_blocks`
    blocks and the last ones up to itself, `window_blocks` in all.
    """

    frames_per_block: int = 3
    """Latent frames denoised together; 3 as in Self-Forcing (arXiv:2506.08009), 1 is frame-wise."""
    window_blocks: int | None = None
    """Blocks that a block attends to, itself and the sinks included; None is all up to itself.

    Self-Forcing counts alike, in frames: its `local_attn_size` 21 is 7 blocks of 3. A model not
    trained with a window flickers where the first block leaves it, unless it is kept as a sink.
    """
    sink_blocks: int = 0
    """First blocks that never leave the window (attention sinks, arXiv:2309.17453)."""
    positions: Positions = "absolute"
    """Temporal rotary positions of keys and queries.

    "absolute": the frame's own, as Self-Forcing does. Rotary scores depend on distances only, so
    the window is as trained at any length, but a sink drifts away and the table has an end
    (`rope_max_seq_len`). "window": the visible blocks are numbered anew from 0 for each block
    (arXiv:2511.20649, "block-relativistic"), so there is no end and a sink stays as far away as
    the window is long; until the window is full, both are the same.
    """

    def __post_init__(self) -> None:
        if self.frames_per_block < 1:
            raise ValueError(
                f"causal.frames_per_block: expected at least 1, got {self.frames_per_block}. "
                "Take 3, or 1 for a frame-wise model."
            )
        if self.sink_blocks < 0:
            raise ValueError(
                f"causal.sink_blocks: expected at least 0, got {self.sink_blocks}. Take 0 or 1."
            )
        if self.positions not in get_args(Positions):
            raise ValueError(
                f"causal.positions: expected one of 'absolute', 'window', got {self.positions!r}."
            )
        if self.window_blocks is not None and self.window_blocks <= self.sink_blocks:
            raise ValueError(
                f"causal.window_blocks: expected more than sink_blocks ({self.sink_blocks}), since "
                f"a block sees itself, got {self.window_blocks}. Raise it, or leave it null."
            )
        if self.window_blocks is None and self.sink_blocks:
            raise ValueError(
                f"causal.sink_blocks: expected 0 without a window, where no block is ever dropped, "
                f"got {self.sink_blocks}. Set causal.window_blocks."
            )

    def visible(self, block: int) -> tuple[int, ...]:
        """Return the blocks that `block` attends to, ascending, itself last."""
        if self.window_blocks is None or block < self.window_blocks:
            return tuple(range(block + 1))
        recent = self.window_blocks - self.sink_blocks
        return (*range(self.sink_blocks), *range(block + 1 - recent, block + 1))

    def num_blocks(self, num_frames: int) -> int:
        """Return how many blocks `num_frames` latent frames make; ValueError when some are over."""
        if num_frames < 1 or num_frames % self.frames_per_block:
            raise ValueError(
                f"causal.frames_per_block: {num_frames} latent frames are no multiple of "
                f"{self.frames_per_block}. Choose model.num_frames so that they are, or another "
                "block size."
            )
        return num_frames // self.frames_per_block
