"""The noise levels of a sampler."""

from __future__ import annotations


def shifted_sigmas(num_steps: int, shift: float) -> tuple[float, ...]:
    """Return num_steps + 1 descending noise levels; the first is just below 1, the last is 0.

    sigma = shift u / (1 + (shift - 1) u), with u falling evenly from 0.999 to 0: Wan's schedule of
    1000 training timesteps, as Flash-GRPO samples it (arXiv:2605.15980, released code). It starts
    below 1 because Flow-SDE's noise is infinite at sigma = 1.
    """
    if num_steps < 1:
        raise ValueError(f"shifted_sigmas: num_steps must be at least 1, got {num_steps}")
    if shift <= 0.0:
        raise ValueError(f"shifted_sigmas: shift must be positive, got {shift}")
    uniform = (0.999 * (1.0 - j / num_steps) for j in range(num_steps + 1))
    return tuple(shift * u / (1.0 + (shift - 1.0) * u) for u in uniform)
