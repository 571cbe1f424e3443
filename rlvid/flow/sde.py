r"""One denoising step: the transition that samples a rollout and scores it again.

Every schedule here takes the Euler step, shrinks the predicted noise and adds fresh noise:

    mean = x + d_sigma v - shrink (x + (1 - sigma) v),      next = mean + std w,   w ~ N(0, I)

For the reverse SDE with noise g(sigma) the step's variance is std^2 = g^2 |d_sigma| and
shrink = std^2 / (2 sigma): the score is -(x + (1 - sigma) v) / sigma, and half the variance times
the score is what keeps the marginals of the ODE (Flow-GRPO, arXiv:2505.05470; DanceGRPO,
arXiv:2505.07818). CPS (arXiv:2509.05952) is not a discretised SDE: it replaces a share of the
predicted noise, shrink = sigma_next (1 - cos(eta pi / 2)), std = sigma_next sin(eta pi / 2). It
keeps the noise power at sigma_next exactly for a sharp prediction of the clean video, but it does
not converge to the ODE's marginals when every step of a long schedule is stochastic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvid.records import NoiseSettings

StdFunction = Callable[[NoiseSettings, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """The numbers of a step that depend on sigma alone; all [B] float64."""

    shrink: Tensor
    """Share of the predicted noise that is removed on top of the Euler step."""
    std: Tensor
    """Standard deviation of the fresh noise."""
    velocity_coefficient: Tensor
    """d mean / d velocity, negative."""
    likelihood_std: Tensor
    """Standard deviation the log-probability assumes: `std`, but sqrt(1/2) for CPS, whose published
    log-probability is -(next - mean)^2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SdeStep:
    """A step taken or scored."""

    next_latents: Tensor
    """[B, C, F, H, W]."""
    mean: Tensor
    """[B, C, F, H, W]."""
    std: Tensor
    """[B]."""
    log_prob: Tensor
    """[B], summed over elements, in nats."""


def _flow_g(noise: NoiseSettings, sigma: Tensor) -> Tensor:
    """g = eta sqrt(sigma / (1 - sigma)), with sigma held at `first_sigma` above it.

    Only the first step lies above; unheld, its noise would exceed the whole signal.
    """
    held = sigma.clamp(max=noise.first_sigma)
    return noise.eta * torch.sqrt(held / (1.0 - held))


def _flow_std(noise: NoiseSettings, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    return _flow_g(noise, sigma) * torch.sqrt(sigma - sigma_next)


def _dance_std(noise: NoiseSettings, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    return noise.eta * torch.sqrt(sigma - sigma_next)


def _flash_std(noise: NoiseSettings, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    return noise.eta * noise.first_sigma * sigma * torch.sqrt(sigma - sigma_next)


def _truncated_std(noise: NoiseSettings, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """g = min(flow's g, tau / sqrt(|d_sigma|)), so the std of a step never exceeds tau."""
    return _flow_std(noise, sigma, sigma_next).clamp(max=noise.truncation)


def _sage_std(noise: NoiseSettings, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Variance eta^2 [log((1 - sigma_next) / (1 - sigma)) - (sigma - sigma_next)]: the integral of
    flow's g^2 over the step (SAGE-GRPO, arXiv:2603.21872); above `first_sigma` g is held, as there.
    """
    top, bottom = sigma.clamp(max=noise.first_sigma), sigma_next.clamp(max=noise.first_sigma)
    below = torch.log((1.0 - bottom) / (1.0 - top)) - (top - bottom)
    above = noise.first_sigma / (1.0 - noise.first_sigma) * ((sigma - top) - (sigma_next - bottom))
    return noise.eta * torch.sqrt(below + above)


def _cps_std(noise: NoiseSettings, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    return sigma_next * math.sin(noise.eta * math.pi / 2.0)


NOISE_SCHEDULES: Mapping[str, StdFunction] = {
    "flow": _flow_std,
    "dance": _dance_std,
    "flash": _flash_std,
    "truncated": _truncated_std,
    "sage": _sage_std,
    "cps": _cps_std,
}
"""Name in a recipe to the std of a step from sigma to sigma_next; [B] float64 in and out."""


def transition(noise: NoiseSettings, sigma: Tensor, sigma_next: Tensor) -> Transition:
    """Return the numbers of a step from sigma [B] to sigma_next [B].

    They are made in float64, so that they do not depend on how rows are batched, and rounded once.
    """
    if noise.schedule not in NOISE_SCHEDULES:
        known = ", ".join(sorted(NOISE_SCHEDULES))
        raise ValueError(
            f"rollout.noise_schedule: unknown name: expected one of {known}, got {noise.schedule!r}"
        )
    sigma, sigma_next = sigma.double(), sigma_next.double()
    std = NOISE_SCHEDULES[noise.schedule](noise, sigma, sigma_next)
    if noise.schedule == "cps":
        shrink = sigma_next * (1.0 - math.cos(noise.eta * math.pi / 2.0))
        likelihood_std = torch.full_like(std, math.sqrt(0.5))
    else:
        shrink = std.square() / (2.0 * sigma)
        likelihood_std = std
    return Transition(
        shrink=shrink,
        std=std,
        velocity_coefficient=(sigma_next - sigma) - shrink * (1.0 - sigma),
        likelihood_std=likelihood_std,
    )


def step_std(noise: NoiseSettings, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Return the std [B] of the noise a step adds, in the dtype of `sigma`."""
    return transition(noise, sigma, sigma_next).std.to(sigma.dtype)


def gradient_scale(noise: NoiseSettings, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Return lambda [B]: the gradient of log_prob with respect to velocity is -w * lambda.

    In general lambda = std |d mean / d velocity| / likelihood_std^2; for the reverse SDE that is
    sqrt(D) / g + g sqrt(D) (1 - sigma) / (2 sigma) with D = |d_sigma| (temporal gradient
    rectification, arXiv:2604.25427). Infinite where the reverse SDE's step is deterministic.
    """
    numbers = transition(noise, sigma, sigma_next)
    scale = numbers.std * numbers.velocity_coefficient.abs() / numbers.likelihood_std.square()
    return torch.where(numbers.likelihood_std > 0.0, scale, math.inf).to(sigma.dtype)


def per_row(numbers: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] in the dtype and rank of `like`, ready to multiply it."""
    return numbers.to(like.dtype).reshape(-1, *(1 for _ in range(like.ndim - 1)))


def euler_step(velocity: Tensor, latents: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Return latents + (sigma_next - sigma) velocity, the deterministic step [B, C, F, H, W]."""
    return latents + per_row(sigma_next.double() - sigma.double(), latents) * velocity


def sde_step(
    velocity: Tensor,
    latents: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    *,
    noise: NoiseSettings,
    next_latents: Tensor | None = None,
    step_noise: Tensor | None = None,
) -> SdeStep:
    """Take a stochastic denoising step (`step_noise` given) or score one (`next_latents` given).

    Both go through the same arithmetic, so scoring a step with the velocity that sampled it gives
    the recorded log-probability bit for bit. The log-probability is that of
    Normal(mean, std), summed over elements; CPS uses -(next - mean)^2 as published.

    Args:
        velocity: [B, C, F, H, W] float32 model output at `sigma`; the only input with a gradient.
        latents: [B, C, F, H, W] state at `sigma`.
        sigma, sigma_next: [B], 1 >= sigma > sigma_next >= 0.
        noise: eta = 0 gives the Euler step and a log-probability of 0.
        next_latents: [B, C, F, H, W] recorded state at `sigma_next`.
        step_noise: [B, C, F, H, W] standard normal.

    Raises:
        ValueError: both or neither of the last two, or scoring a step without noise (eta = 0, or
            the last step of CPS): it has no density.
    """
    if (next_latents is None) == (step_noise is None):
        raise ValueError("sde_step: pass either step_noise (to sample) or next_latents (to score)")
    numbers = transition(noise, sigma, sigma_next)
    deterministic = numbers.std == 0.0
    if next_latents is not None and bool(deterministic.any()):
        raise ValueError(
            "sde_step: cannot score a deterministic step (its std is 0, it has no density): "
            f"schedule {noise.schedule!r}, eta {noise.eta}, sigma_next {sigma_next.tolist()}. "
            "Train only stochastic steps."
        )
    predicted_noise = latents + per_row(1.0 - sigma.double(), latents) * velocity
    euler = euler_step(velocity, latents, sigma, sigma_next)
    mean = euler - per_row(numbers.shrink, latents) * predicted_noise
    if step_noise is not None:
        next_latents = mean.detach() + per_row(numbers.std, latents) * step_noise
    assert next_latents is not None, "sde_step: next_latents was given or has just been sampled"
    return SdeStep(
        next_latents=next_latents,
        mean=mean,
        std=numbers.std.to(latents.dtype),
        log_prob=_log_prob(next_latents, mean, numbers, noise, deterministic),
    )


def _log_prob(
    next_latents: Tensor,
    mean: Tensor,
    numbers: Transition,
    noise: NoiseSettings,
    deterministic: Tensor,
) -> Tensor:
    """[B]; rows are summed in float64: torch's float32 sum of a large row depends on the number of
    rows and threads (0.2 nats for the latents of one clip), and then the ratio would not be 1.
    """
    squared = (next_latents - mean).square().flatten(1).sum(dim=1, dtype=torch.float64)
    if noise.schedule == "cps":
        log_prob = -squared
    else:
        std = torch.where(deterministic, 1.0, numbers.likelihood_std)
        normaliser = torch.log(std) + 0.5 * math.log(2.0 * math.pi)
        log_prob = -squared / (2.0 * std.square()) - mean[0].numel() * normaliser
    return torch.where(deterministic, 0.0, log_prob).to(mean.dtype)
