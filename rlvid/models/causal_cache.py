"""Keys and values of finished blocks, held by whoever generates; `causal_wan` reads and fills it.

Stored tensors are never written to again: a forward that still waits for its backward keeps what it
saw, also after the window has moved on.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlvid.condition import Condition
from rlvid.models.causal_attention import KeysValues
from rlvid.models.causal_layout import BlockLayout


class BlockCache:
    """What later blocks of B clips attend to, and their prompts' keys and values.

    It belongs to one batch of prompts and one set of weights: after an optimizer step, a publish or
    a switched adapter it describes another model, so open a new one. With a window it holds at most
    `window_blocks - 1` blocks, whatever the length of the clip.
    """

    def __init__(self, layout: BlockLayout, condition: Condition) -> None:
        self.layout = layout
        self.condition = condition
        """Of B rows."""
        self.prompt_layers: dict[int, KeysValues] = {}
        """Cross-attention by layer, filled by the first forward without gradient."""
        self.num_blocks = 0
        """Finished blocks, those that have left the window included."""
        self.block_shape: tuple[int, ...] | None = None
        """(B, C, F, H, W) of the stored blocks; None while there is none."""
        self._blocks: dict[int, Mapping[int, KeysValues]] = {}

    def layers(self) -> tuple[tuple[KeysValues, ...], ...]:
        """Return per layer what the next block attends to, oldest first; () while empty."""
        blocks = list(self._blocks.values())
        return tuple(zip(*(block.values() for block in blocks), strict=True))

    def add(self, layers: Mapping[int, KeysValues], block_shape: tuple[int, ...]) -> None:
        """Store a finished block and drop those that no later block attends to."""
        self._blocks[self.num_blocks] = dict(sorted(layers.items()))
        self.block_shape = block_shape
        self.num_blocks += 1
        seen = set(self.layout.visible(self.num_blocks))
        self._blocks = {index: block for index, block in self._blocks.items() if index in seen}

    @property
    def kept_blocks(self) -> tuple[int, ...]:
        """Numbers of the blocks that are held, oldest first."""
        return tuple(self._blocks)
