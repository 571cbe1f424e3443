"""Fits lawful motion to a tracked object: what is left over is what breaks the laws.

Analysis by synthesis, on grids, so that a bad track has no local minimum to fall into and the
result is the same on every machine. Heights are world px above the resting place, up is positive;
times in seconds. Letters: N candidate motions, T frames.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MAX_BOUNCES = 6
"""Bounces followed in a clip; then the object rests."""
LEVEL_SLACK = 0.75
"""World px by which the ground may lie off the place where the drawn one is."""
RESTITUTIONS = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 0.95])
"""Speed after over speed before a bounce; never above 1, which is what forbids gaining energy."""
THROWS = np.linspace(-20.0, 48.0, 24)
"""Tried upward speeds of the first frame, px / s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerticalFit:
    """The lawful flight over a flat ground nearest to the measured heights."""

    error: float
    """Mean distance from the measured heights, world px."""
    start_height: float
    throw: float
    """Upward speed of the first frame, px / s."""
    restitution: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HorizontalFit:
    """Steady motion, or steady motion with one rebound, nearest to the measured path."""

    error: float
    """Mean distance from the measured path, world px."""
    velocity: float
    """Of the first movement, px / s, positive to the right."""
    rebound: float
    """Speed after the hit over speed before; -1 without a hit."""
    hit_s: float
    """Time of the hit."""


def bounce_heights(
    start_height: Floats, throw: Floats, restitution: Floats, times: Floats, gravity: float
) -> Floats:
    """Return [N, T] heights of point masses thrown up from `start_height` [N] over the ground.

    In flight h + u t - g t^2 / 2; at the ground u becomes restitution times the impact speed.
    """
    height = np.maximum(start_height, 0.0)
    upward = np.where((height <= 0) & (throw < 0), 0.0, throw)
    begin = np.zeros_like(height)
    result = np.zeros((len(height), len(times)))
    for _ in range(MAX_BOUNCES):
        impact = np.sqrt(upward**2 + 2 * gravity * height)
        flight = (upward + impact) / gravity
        local = times[None, :] - begin[:, None]
        inside = (local >= 0) & (local < flight[:, None])
        path = height[:, None] + upward[:, None] * local - 0.5 * gravity * local**2
        result = np.where(inside, path, result)
        begin = begin + flight
        upward, height = restitution * impact, np.zeros_like(height)
    return result


def fit_vertical(heights: Floats, weights: Floats, times: Floats, gravity: float) -> VerticalFit:
    """Fit `bounce_heights` to [T] measured heights, coarse to fine.

    Args:
        weights: [T] trust in each height; their sum must be positive.
    """
    starts = float(heights[0]) + np.array([-1.0, 0.0, 1.0])
    grid = np.array(list(itertools.product(starts, THROWS, RESTITUTIONS)))
    errors = _vertical_errors(grid, heights, weights, times, gravity)
    steps = np.array([0.6, 1.5, 0.1])
    offsets = np.array(
        list(itertools.product((-1.0, 0.0, 1.0), (-1.0, 0.0, 1.0), (-1.0, 0.0, 1.0)))
    )
    for _ in range(4):
        # Several seeds: a late bounce makes the error bumpy in throw and restitution.
        best = grid[np.argsort(errors, kind="stable")[:8]]
        grid = (best[:, None, :] + offsets[None] * steps).reshape(-1, 3)
        grid[:, 2] = np.clip(grid[:, 2], 0.0, 1.0)
        errors = _vertical_errors(grid, heights, weights, times, gravity)
        steps = steps / 2
    winner = int(errors.argmin())
    return VerticalFit(
        error=float(errors[winner]),
        start_height=max(float(grid[winner, 0]), 0.0),
        throw=float(grid[winner, 1]),
        restitution=float(grid[winner, 2]),
    )


def _vertical_errors(
    grid: Floats, heights: Floats, weights: Floats, times: Floats, gravity: float
) -> Floats:
    """[N] weighted mean distance of the candidates (start, throw, restitution), level removed."""
    path = bounce_heights(grid[:, 0], grid[:, 1], grid[:, 2], times, gravity)
    share = weights / weights.sum()
    residual = heights[None] - path
    level = np.clip((residual * share).sum(axis=1), -LEVEL_SLACK, LEVEL_SLACK)
    return np.asarray((np.abs(residual - level[:, None]) * share).sum(axis=1), dtype=np.float64)


def fit_horizontal(path: Floats, weights: Floats, times: Floats) -> HorizontalFit:
    """Fit a start and a velocity to [T] positions for every hit time and rebound, keep the best."""
    rebounds = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
    step = times[1] - times[0]
    hits = np.arange(times[1], times[-1] - step / 2, step / 4)
    table = np.array([(times[-1] + step, -1.0), *itertools.product(hits, rebounds)])
    hit, rebound = table[:, :1], table[:, 1:]
    basis = np.minimum(times[None], hit) - rebound * np.maximum(times[None] - hit, 0.0)
    share = weights / weights.sum()
    basis_mean = (basis * share).sum(axis=1, keepdims=True)
    path_mean = (path * share).sum()
    centred = basis - basis_mean
    variance = np.maximum((centred**2 * share).sum(axis=1), 1e-9)
    velocity = (centred * (path - path_mean) * share).sum(axis=1) / variance
    residual = path[None] - path_mean - velocity[:, None] * centred
    errors = (np.abs(residual) * share).sum(axis=1)
    winner = int(errors.argmin())
    return HorizontalFit(
        error=float(errors[winner]),
        velocity=float(velocity[winner]),
        rebound=float(table[winner, 1]),
        hit_s=float(table[winner, 0]),
    )
