r"""Variance-preserving diffusion with v-prediction, in the flow coordinates of rlvid.

A model of this kind is trained on x_t = alpha x0 + s eps with alpha^2 + s^2 = 1, at whole timesteps
t whose alpha^2 is the scheduler's `alphas_cumprod`, and predicts v = alpha eps - s x0 (Salimans and
Ho, arXiv:2202.00512). Divided by alpha + s that is a flow state,

    x_sigma = x_t / (alpha + s) = (1 - sigma) x0 + sigma eps,    sigma = s / (alpha + s),

so alpha = (1 - sigma) / n, s = sigma / n and alpha + s = 1 / n, with n^2 = (1 - sigma)^2 + sigma^2.
From x0 = alpha x_t - s v and eps = s x_t + alpha v the flow velocity is

    eps - x0 = (s - alpha) x_t + (alpha + s) v = (2 sigma - 1) / n x_t + v / n.

Deterministic DDIM is Euler in x_sigma: DDIM's next state is alpha' x0 + s' eps, which divided by
alpha' + s' is (1 - sigma') x0 + sigma' eps = x_sigma + (sigma' - sigma) (eps - x0).

At zero terminal SNR alpha is 0 at the last timestep and sigma exactly 1; there v = -x0, where a
prediction of the noise would say nothing. The samplers and noise schedules of `rlvid.flow` need no
change: marginals of x_sigma are those of any flow model.
"""

from __future__ import annotations

import torch
from torch import Tensor


class VariancePreserving:
    """The noise levels of a scheduler's timesteps, and the change of coordinates."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        """`alphas_cumprod` [T] falls with the timestep, as diffusers' schedulers have it.

        Its device is where timesteps are asked for.
        """
        squared = alphas_cumprod.double()
        alpha, s = squared.sqrt(), (1.0 - squared).sqrt()
        # Rounded as the samplers hand sigma over, so that a timestep's own sigma gives it exactly.
        self.sigmas = (s / (alpha + s)).float().double()
        """[T] float64 of float32 values, rising."""

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the timestep [B] float32 of sigma [B].

        Whole at the scheduler's own levels. Between two of them it is linear in sigma: the model
        was trained at neither, and its sinusoidal embedding of the timestep is smooth. Below the
        first level it is 0 and above the last one T - 1.
        """
        levels = self.sigmas
        sigma = sigma.double().clamp(levels[0], levels[-1])
        upper = torch.searchsorted(levels, sigma).clamp(1, len(levels) - 1)
        below, above = levels[upper - 1], levels[upper]
        return (upper - 1 + (sigma - below) / (above - below)).float()


def variance_preserving_state(latents: Tensor, sigma: Tensor) -> Tensor:
    """Return x_t of the flow state x_sigma; `sigma` broadcasts against it."""
    return latents / _norm(sigma)


def velocity_of(v: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
    """Return the flow velocity, noise - clean, of a v-prediction at the flow state `latents`.

    Args:
        v, latents: [B, C, F, H, W].
        sigma: broadcasts against them.
    """
    norm = _norm(sigma)
    return (2.0 * sigma - 1.0) / norm.square() * latents + v / norm


def _norm(sigma: Tensor) -> Tensor:
    """Return n = 1 / (alpha + s)."""
    return ((1.0 - sigma).square() + sigma.square()).sqrt()
