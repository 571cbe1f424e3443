"""The learning rate as a pure function of the optimiser step, so that a resume needs no state."""

from __future__ import annotations

import math

from rlvid.config import OptimizerConfig

FINAL_FRAC = 0.1
"""Where the cosine ends, as a share of the learning rate."""


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the rate of optimiser step `step` (0-based) of `total_steps`.

    Linear warm-up from 0 that reaches the full rate at step `warmup_steps`; step 0 takes the first
    stair, because a step of rate 0 would change nothing. Then constant, or a cosine that ends at a
    tenth of the rate at the last step.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    if config.decay == "constant":
        return config.learning_rate
    span = max(total_steps - 1 - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / span, 1.0)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * (FINAL_FRAC + (1.0 - FINAL_FRAC) * cosine)
