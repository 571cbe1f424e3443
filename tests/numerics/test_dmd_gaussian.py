"""Distribution matching where every score is known: student, teacher and fake score are Gaussian.

For data N(m, S) the latents at sigma are N((1 - sigma) m, (1 - sigma)^2 S + sigma^2 I), so score
and velocity are linear and exact. Rows are vectors of three elements, [B, 3, 1, 1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rlvid.algorithms.dmd import dmd_gradient, dmd_loss, draw_score_sigma, fake_score_loss
from rlvid.algorithms.flow_matching import add_noise
from rlvid.algorithms.gan import fake_logit_loss, real_logit_loss, student_gan_gradient
from rlvid.flow.predictions import predicted_clean, predicted_noise, predicted_score

DIM = 3
EYE = torch.eye(DIM, dtype=torch.float64)


@dataclass(frozen=True)
class Gaussian:
    mean: Tensor
    covariance: Tensor

    def score(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """-( (1 - sigma)^2 S + sigma^2 I )^-1 (x - (1 - sigma) m), [B, 3, 1, 1, 1]."""
        level = sigma.view(-1, 1, 1)
        spread = (1.0 - level).square() * self.covariance + level.square() * EYE
        centred = latents.flatten(1) - (1.0 - sigma)[:, None] * self.mean
        solved: Tensor = torch.linalg.solve(spread, centred[..., None])
        return -solved.view(-1, DIM, 1, 1, 1)

    def log_density(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """[B] of the noised data."""
        level = sigma.view(-1, 1, 1)
        spread = (1.0 - level).square() * self.covariance + level.square() * EYE
        data = torch.distributions.MultivariateNormal((1.0 - sigma)[:, None] * self.mean, spread)
        density: Tensor = data.log_prob(latents.flatten(1))
        return density

    def velocity(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """E[noise - clean | x] = -(x + sigma score) / (1 - sigma)."""
        level = sigma.view(-1, 1, 1, 1, 1)
        return -(latents + level * self.score(latents, sigma)) / (1.0 - level)


def some_gaussian(seed: int) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)
    mean = torch.randn(DIM, generator=generator, dtype=torch.float64)
    return Gaussian(mean, root @ root.T + 0.2 * EYE)


def rows(seed: int, num_rows: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, DIM, 1, 1, 1, generator=generator, dtype=torch.float64)


SIGMA = torch.tensor([0.05, 0.3, 0.5, 0.7, 0.95], dtype=torch.float64)


def test_predictions_of_the_exact_velocity_are_the_closed_forms() -> None:
    """Score as above, noise = -sigma score (Tweedie), and the two make up the latents again."""
    data, latents = some_gaussian(0), rows(1)
    velocity = data.velocity(latents, SIGMA)
    score = predicted_score(velocity, latents, SIGMA)
    torch.testing.assert_close(score, data.score(latents, SIGMA), rtol=1e-9, atol=1e-10)
    noise = predicted_noise(velocity, latents, SIGMA)
    clean = predicted_clean(velocity, latents, SIGMA)
    torch.testing.assert_close(add_noise(clean, noise, SIGMA), latents, rtol=1e-12, atol=1e-12)
    level = SIGMA.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(noise, -level * score, rtol=1e-12, atol=1e-12)


def test_gradient_is_that_of_the_kl_between_two_gaussians() -> None:
    """sigma^2 / (1 - sigma) (score_fake - score_real), both in closed form; the surrogate's too."""
    real, fake = some_gaussian(0), some_gaussian(1)
    clean = rows(2).requires_grad_()
    latents = add_noise(clean.detach(), rows(3), SIGMA)
    gradient = dmd_gradient(
        clean,
        latents,
        SIGMA,
        real_velocity=real.velocity(latents, SIGMA),
        fake_velocity=fake.velocity(latents, SIGMA),
        normalise=False,
    )
    level = SIGMA.view(-1, 1, 1, 1, 1)
    difference = fake.score(latents, SIGMA) - real.score(latents, SIGMA)
    expected = level.square() / (1.0 - level) * difference
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)
    (surrogate,) = torch.autograd.grad(dmd_loss(clean, gradient).sum(), clean)
    assert torch.equal(surrogate, gradient)


def test_normaliser_is_the_teachers_mean_error() -> None:
    """mean |clean - E[clean | x]| with the posterior mean of the Gaussian, row by row."""
    real, fake = some_gaussian(0), some_gaussian(1)
    clean, latents = rows(2), rows(3)
    plain, actual = (
        dmd_gradient(
            clean,
            latents,
            SIGMA,
            real_velocity=real.velocity(latents, SIGMA),
            fake_velocity=fake.velocity(latents, SIGMA),
            normalise=normalise,
        )
        for normalise in (False, True)
    )
    level = SIGMA.view(-1, 1, 1, 1, 1)
    posterior = (latents + level.square() * real.score(latents, SIGMA)) / (1.0 - level)
    scale = (clean - posterior).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(actual, plain / scale, rtol=1e-9, atol=1e-11)


def test_exact_velocity_minimises_the_fake_scores_loss() -> None:
    """The mean gradient at the closed form vanishes as 1 / sqrt(rows), and not beside it."""
    student = some_gaussian(0)
    generator = torch.Generator().manual_seed(0)
    num_rows = 200_000
    draws = torch.randn(2, num_rows, DIM, generator=generator, dtype=torch.float64)
    root = torch.linalg.cholesky(student.covariance)
    clean = (student.mean + draws[0] @ root.T).view(-1, DIM, 1, 1, 1)
    noise = draws[1].view(-1, DIM, 1, 1, 1)
    sigma = torch.full((num_rows,), 0.4, dtype=torch.float64)
    velocity = student.velocity(add_noise(clean, noise, sigma), sigma)
    slopes = []
    for shift in (0.0, 0.1):
        offset = torch.full((1, DIM, 1, 1, 1), shift, dtype=torch.float64, requires_grad=True)
        loss = fake_score_loss(velocity + offset, clean, noise, sigma).mean()
        (slope,) = torch.autograd.grad(loss, offset)
        slopes.append(float(slope.abs().max()))
    # Elements have an std near 2, so 2 / 3 * 2 / sqrt(200000) = 0.003 is one standard error.
    assert slopes[0] < 0.012
    assert slopes[1] > 0.05


def test_best_discriminator_leads_where_the_scores_do() -> None:
    """It says log p_real / p_fake of the noised clip, whose slope is a difference of scores.

    So the student's gradient is (1 - sigma) (score_fake - score_real), times its chance of fake.
    """
    real, fake = some_gaussian(0), some_gaussian(1)
    clean = rows(2).requires_grad_()
    latents = add_noise(clean, rows(3), SIGMA)
    logit = real.log_density(latents, SIGMA) - fake.log_density(latents, SIGMA)
    gradient = student_gan_gradient(logit, clean)
    chance = torch.sigmoid(-logit.detach()) * (1.0 - SIGMA)
    noisy = latents.detach()
    difference = fake.score(noisy, SIGMA) - real.score(noisy, SIGMA)
    torch.testing.assert_close(
        gradient, chance.view(-1, 1, 1, 1, 1) * difference, rtol=1e-9, atol=1e-11
    )


def test_log_ratio_minimises_the_discriminators_loss() -> None:
    """At the closed form the mean slope along an offset vanishes as 1 / sqrt(rows)."""
    generator = torch.Generator().manual_seed(0)
    num_rows, clips = 100_000, []
    sigma = torch.full((num_rows,), 0.4, dtype=torch.float64)
    both = some_gaussian(0), some_gaussian(1)
    for data in both:
        z, noise = torch.randn(2, num_rows, DIM, generator=generator, dtype=torch.float64)
        clean = (data.mean + z @ torch.linalg.cholesky(data.covariance).T).view(-1, DIM, 1, 1, 1)
        clips.append(add_noise(clean, noise.view(-1, DIM, 1, 1, 1), sigma))
    slopes = []
    for shift in (0.0, 0.1):
        offset = torch.tensor(shift, dtype=torch.float64, requires_grad=True)
        real, fake = (
            both[0].log_density(x, sigma) - both[1].log_density(x, sigma) + offset for x in clips
        )
        loss = real_logit_loss(real).mean() + fake_logit_loss(fake).mean()
        slopes.append(abs(float(torch.autograd.grad(loss, offset)[0])))
    assert slopes[0] < 0.005  # each mean of chances has a standard error below 0.5 / sqrt(100000)
    assert slopes[1] > 2 * 0.005


@pytest.mark.parametrize("normalise", [True, False])
def test_gaussian_student_converges_to_the_teacher(normalise: bool) -> None:
    """x = a + L z with the fake score exact at every step: mean and covariance become the real."""
    real = some_gaussian(4)
    mean = torch.zeros(DIM, dtype=torch.float64, requires_grad=True)
    root = (0.5 * EYE).clone().requires_grad_()
    num_steps = 500
    optimiser = torch.optim.Adam([mean, root], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps, eta_min=5e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        z, noise = torch.randn(2, 256, DIM, generator=generator, dtype=torch.float64)
        clean = (mean + z @ root.T).view(-1, DIM, 1, 1, 1)
        sigma = draw_score_sigma(256, generator=generator).double()
        latents = add_noise(clean.detach(), noise.view(-1, DIM, 1, 1, 1), sigma)
        fake = Gaussian(mean.detach(), (root @ root.T).detach())
        gradient = dmd_gradient(
            clean,
            latents,
            sigma,
            real_velocity=real.velocity(latents, sigma),
            fake_velocity=fake.velocity(latents, sigma),
            normalise=normalise,
        )
        optimiser.zero_grad()
        dmd_loss(clean, gradient).mean().backward()
        optimiser.step()
        schedule.step()
    # Where student and teacher agree every single gradient is 0, so no noise is left at the end.
    torch.testing.assert_close(mean.detach(), real.mean, rtol=0.0, atol=0.02)
    torch.testing.assert_close((root @ root.T).detach(), real.covariance, rtol=0.0, atol=0.05)
