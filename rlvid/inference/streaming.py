"""Frames as they come: the blocks of a causal student, each decoded as soon as it is clean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor


def stream_frames(
    blocks: Iterable[Tensor], decode: Callable[[Tensor], Tensor], *, num_frames: int | None
) -> Iterator[Tensor]:
    """Yield frames [B, T, 3, H, W] in [0, 1], a block's at a time.

    A block is asked for when its frames are, so nothing is generated that nobody takes.

    Args:
        blocks: clean latents [B, C, F, H, W] in order (`rlvid.models.student.Student.blocks`).
        decode: next latents to next frames (`rlvid.models.wan_vae_stream.WanVaeStream.decode`).
        num_frames: frames in all, at least 1; None goes on for as long as there are blocks.
    """
    if num_frames is not None and num_frames < 1:
        raise ValueError(
            f"stream_frames: num_frames: expected at least 1 or None, got {num_frames}"
        )
    left = num_frames
    for block in blocks:
        frames = decode(block)
        if left is None:
            yield frames
            continue
        yield frames[:, :left]
        left -= frames.shape[1]
        if left <= 0:
            return
