"""The clips that a family was trained for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeRange:
    """What a model card, paper or pipeline says; None, or an empty tuple, where none says it."""

    num_frames: tuple[int | None, int | None] = (None, None)
    """Fewest and most pixel frames."""
    height_width: tuple[tuple[int, int], ...] = ()
    """Pixels, of the sizes that are named."""
    fps: float | None = None
    """Frames of a second of the videos that it was trained on."""
