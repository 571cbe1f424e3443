"""Classifier-free guidance within an interval of sigma only (arXiv:2404.07724).

At high sigma guidance narrows what the model draws, at low sigma it does next to nothing; outside
the interval the unconditional half of the batch is not computed, which halves the step.
"""

from __future__ import annotations


def guidance_scale_at(
    sigma: float, guidance_scale: float, interval: tuple[float, float] | None
) -> float:
    """Return the scale of the step at `sigma`: 1, the conditional half alone, outside `interval`.

    Args:
        interval: its ends belong to it; None is everywhere.
    """
    if interval is None or interval[0] <= sigma <= interval[1]:
        return guidance_scale
    return 1.0
