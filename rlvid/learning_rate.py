"""How a learning rate goes over the steps of a small training that has no recipe section."""

from __future__ import annotations

import math


def warmup_cosine(step: int, num_steps: int) -> float:
    """Return the share of the peak at a step: up over 5 % of the steps, a cosine to a hundredth."""
    warmup = max(1, num_steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress))
