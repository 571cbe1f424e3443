"""Block after block, each seeing what the model itself made before: the roll-out of Self-Forcing.

arXiv:2506.08009, algorithms 1 and 2. Training and generating are the same function: in training one
random exit level, shared by all blocks, carries the gradient; nothing flows through the cache,
because a finished block enters it by a forward of its own at sigma 0, without gradient.

Letters: B clips, C F H W latents of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any, Protocol

from torch import Tensor

from rlvid.condition import Condition
from rlvid.flow.few_step import denoise_to_exit

BlockNoise = Callable[[int, int], Tensor]
"""(block, level) to noise [B, C, F, H, W]; level 0 is the block's start."""


class BlockModel(Protocol):
    """What is asked of a causal model; `rlvid.models.causal_wan.CausalWan` is one."""

    def open_cache(self, condition: Condition) -> Any:
        """Return an empty cache for the B clips of a condition."""
        ...

    def block_velocity(self, latents: Tensor, sigma: Tensor, cache: Any) -> Tensor:
        """Return the velocity of the next block, given the finished ones; differentiable."""
        ...

    def append_block(self, clean: Tensor, cache: Any) -> None:
        """Put a finished block into the cache, without gradient."""
        ...


def roll_out(
    model: BlockModel,
    condition: Condition,
    sigmas: Sequence[float],
    *,
    noise: BlockNoise,
    num_blocks: int | None,
    exit_step: int | None = None,
) -> Iterator[Tensor]:
    """Yield the clean blocks [B, C, F, H, W] of clips, one after the other.

    Args:
        condition: of B rows.
        sigmas: the student's levels (`rlvid.flow.few_step.student_sigmas`).
        num_blocks: None goes on for as long as the caller asks.
        exit_step: level with the gradient; None is the last, which samples.
    """
    cache = model.open_cache(condition)
    for block in count() if num_blocks is None else range(num_blocks):
        clean = denoise_to_exit(
            partial(_velocity, model, cache),
            noise(block, 0),
            sigmas,
            step_noise=partial(noise, block),
            exit_step=exit_step,
        )
        yield clean
        if num_blocks is None or block + 1 < num_blocks:
            model.append_block(clean.detach(), cache)


def _velocity(model: BlockModel, cache: Any, latents: Tensor, sigma: Tensor) -> Tensor:
    return model.block_velocity(latents, sigma, cache)
