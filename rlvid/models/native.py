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

    def outside(self, num_frames: int, height: int, width: int) -> list[str]:
        """Return what of a clip lies outside, each with what lies inside; nothing where all fits.

        Sizes that are named are all there are: a size between two of them is outside.
        """
        found = []
        fewest, most = self.num_frames
        if num_frames < (fewest or 1) or num_frames > (most or num_frames):
            given = (("at least", fewest), ("at most", most))
            limits = " and ".join(f"{word} {number}" for word, number in given if number)
            found.append(f"{num_frames} frames ({limits})")
        if self.height_width and (height, width) not in self.height_width:
            sizes = ", ".join(f"{high}x{wide}" for high, wide in self.height_width)
            found.append(f"height x width {height}x{width} ({sizes})")
        return found
