"""Few-step sampling of a distilled student, and its differentiable form.

From pure noise, at each level of a short list: predict the clean video, then add fresh noise of the
next level to it (DMD2, arXiv:2405.14867, "backward simulation": training draws its inputs this way
as well, so the student sees what it will see). The noise between levels is new, so the sampler is
stochastic; with the seeds given it is a function.

Letters: B clips, C F H W latents, S levels of the student.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlvid.flow.predictions import predicted_clean
from rlvid.flow.sampler import VelocityFunction, initial_noise
from rlvid.flow.sigmas import Shift, shifted
from rlvid.seeds import derive_seed

StepNoise = Callable[[int], Tensor]
"""Level j, from 1, to the fresh noise [B, C, F, H, W] added before it."""


def student_sigmas(steps: Sequence[float], shift: Shift) -> tuple[float, ...]:
    """Return the student's S noise levels, descending from 1: the sampler's shift on `steps`.

    sigma = shift u / (1 + (shift - 1) u); [1, 0.75, 0.5, 0.25] at shift 5 are Self-Forcing's. There
    is no 0 at the end: after the last level the predicted clean video is the sample.
    """
    return tuple(shifted(u, shift) for u in steps)


def denoise_to_exit(
    velocity: VelocityFunction,
    noise: Tensor,
    sigmas: Sequence[float],
    *,
    step_noise: StepNoise,
    exit_step: int | None = None,
) -> Tensor:
    """Return the clean video [B, C, F, H, W] predicted at level `exit_step`.

    Gradient is that of the exit level alone, whatever led to it: the levels before run without.

    Args:
        noise: [B, C, F, H, W], the state at sigmas[0], which is 1.
        sigmas: [S] of `student_sigmas`.
        step_noise: equal for equal level.
        exit_step: in [0, S); None is the last, which samples.
    """
    last = len(sigmas) - 1 if exit_step is None else exit_step
    if not 0 <= last < len(sigmas):
        raise ValueError(
            f"few_step: exit_step: expected one of {len(sigmas)} levels from 0, got {last}"
        )
    latents = noise
    for j in range(last):
        with torch.no_grad():
            clean = _clean_at(velocity, latents, sigmas[j])
            following = sigmas[j + 1]
            latents = (1.0 - following) * clean + following * step_noise(j + 1)
    return _clean_at(velocity, latents, sigmas[last])


def _clean_at(velocity: VelocityFunction, latents: Tensor, sigma: float) -> Tensor:
    rows = torch.full((latents.shape[0],), sigma, device=latents.device)
    return predicted_clean(velocity(latents, rows), latents, rows)


def fresh_noise(seeds: Sequence[int], shape: Sequence[int], *place: int | str) -> Tensor:
    """Return the draw of each clip for a place, e.g. (block, level): [B, *shape] float32, CPU.

    A function of (seed, place): neither batching nor the device nor earlier draws move it.
    """
    return torch.stack(
        [initial_noise(derive_seed(seed, "student", *place), shape) for seed in seeds]
    )
