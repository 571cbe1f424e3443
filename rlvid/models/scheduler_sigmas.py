"""The noise levels that a pipeline samples with, asked of its own scheduler's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def with_timesteps(scheduler: Any, *asked: Any, **options: Any) -> Any:
    """Return a scheduler of the same configuration that was asked for timesteps.

    Args:
        scheduler: of diffusers; it stays as it is.
        asked, options: of its own `set_timesteps`.
    """
    own = type(scheduler).from_config(scheduler.config)
    own.set_timesteps(*asked, **options)
    return own


def flow_match_sigmas(
    scheduler: Any, sigmas: Sequence[float], *, mu: float | None = None
) -> tuple[float, ...]:
    """Return what diffusers' FlowMatchEulerDiscreteScheduler makes of noise levels, and the end.

    Args:
        scheduler: whose shift, stretch and conversions are applied; it stays as it is.
        sigmas: before the shift, descending from 1.
        mu: of a dynamic shift; see `token_shift`.

    Raises:
        ValueError: the shift leaves float32 no two levels apart, and diffusers would go on with
            noise levels that are not numbers.
    """
    own = with_timesteps(scheduler, sigmas=list(sigmas), mu=mu)
    if not bool(own.sigmas.isfinite().all()):
        raise ValueError(
            f"sigmas: {type(scheduler).__name__} shifts {len(sigmas)} noise levels by mu {mu} to "
            f"{own.sigmas.tolist()}: expected numbers. Sample smaller clips, or lower max_shift in "
            "the folder's scheduler_config.json."
        )
    return tuple(own.sigmas.tolist())


def linear_sigmas(num_steps: int) -> list[float]:
    """Return num_steps noise levels that fall evenly from 1 to 1 / num_steps."""
    if num_steps < 1:
        raise ValueError(f"sigmas: num_steps must be at least 1, got {num_steps}")
    return [1.0 - j / num_steps for j in range(num_steps)]


def token_shift(scheduler: Any, num_tokens: int) -> float:
    """Return mu of a dynamic shift: linear in the number of tokens of a clip, beyond both ends too.

    It is `calculate_shift` of diffusers' pipelines, with the figures of the folder's scheduler.
    """
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    return float(config.base_shift + slope * (num_tokens - config.base_image_seq_len))
