"""KL divergence between two policies on one denoising step, in closed form."""

from __future__ import annotations

from torch import Tensor

from rlvid.flow.sde import per_row, transition
from rlvid.records import NoiseSettings


def velocity_kl(
    velocity: Tensor,
    reference_velocity: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    noise: NoiseSettings,
) -> Tensor:
    """Return KL(policy || reference) [N] of the transitions, summed over elements, in nats.

    Both are Gaussians of one std, whose means differ by velocity_coefficient times the velocities:

        KL = |velocity_coefficient|^2 / (2 likelihood_std^2) ||velocity - reference||^2

    For the reverse SDE this is (D / 2) (g (1 - sigma) / (2 sigma) + 1 / g)^2 ||.||^2 of Flow-GRPO
    (arXiv:2505.05470). CPS must use the std its log-probability assumes, sqrt(1/2), not the std of
    its noise, else the KL is out of scale with the ratio.

    Args:
        velocity, reference_velocity: [N, C, F, H, W].
        sigma, sigma_next: [N].
    """
    numbers = transition(noise, sigma, sigma_next)
    scale = numbers.velocity_coefficient / numbers.likelihood_std
    difference = per_row(scale, velocity) * (velocity - reference_velocity)
    return 0.5 * difference.square().flatten(1).sum(dim=1)
