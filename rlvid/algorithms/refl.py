r"""Reward back-propagation: a differentiable critic's gradient through the last denoising steps.

One function covers most of what is published; the settings are a `GradientPath`:

    ReFL (arXiv:2304.05977)       stops at a random late step, one step of gradient, then jumps to
                                  the expected clean video; loss relu(2 - reward)
    DRaFT-K (arXiv:2309.17400)    samples to the end, gradient in the last K steps; loss -reward
    AlignProp (arXiv:2310.03739)  the same with K drawn anew for each batch, which is not offered
    DRTune (arXiv:2405.00760)     stops the gradient at the model's input: no product of Jacobians

Read in released code: ReFL's loss and exit (steps 30 to 39 of 40), AlignProp's truncation. Of DRaFT
and DRTune the abstracts were read; DRTune's sparse choice of steps and DRaFT's low-variance
estimator are not here. A rule for ending a run was NOT FOUND in any of them. A critic that can be
differentiated is exploited fast, so that decision is the held-out judges'
(`rlvid.evaluation.monitor`), and only a row is stopped here.

Letters: B rows, C F H W latents, K denoising steps, T pixel frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu

from rlvid.algorithms.advantages import all_scored
from rlvid.algorithms.base import Credit, LossTerms
from rlvid.algorithms.data_regulariser import added
from rlvid.algorithms.forward import row_terms
from rlvid.config.algorithm import AdvantageConfig, AlgorithmConfig
from rlvid.flow.predictions import predicted_clean
from rlvid.flow.sampler import VelocityFunction
from rlvid.flow.sde import euler_step

DecodeFunction = Callable[[Tensor], Tensor]
"""latents [B, C, F, H, W] -> videos [B, T, 3, height, width] in [0, 1], differentiable."""
RewardFunction = Callable[[Tensor], Tensor]
"""videos [B, T, 3, height, width] -> rewards [B], differentiable, higher is better."""

NO_SCORE = "no rollout with all scores"
REFL_EXIT_FRAC = (0.75, 1.0)
"""Share of the schedule in which ReFL exits: steps 30 to 39 of 40."""
REFL_TARGET = 2.0
"""Reward past which ReFL stops a row; in standard deviations of ImageReward's scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientPath:
    """Which denoising steps keep their gradient, and where sampling ends."""

    num_gradient_steps: int = 1
    """Last forwards of the model that keep their gradient; memory grows with each."""
    exit_step: int | None = None
    """Denoising step after whose forward the clean video is predicted; None is the last one."""
    crosses_inputs: bool = True
    """Whether the gradient also flows through the state the model is given, from a step to the one
    before. Off, every step is reached along the straight sum of velocities alone."""

    def last_step(self, num_steps: int) -> int:
        """Return the step of the last forward of a schedule of `num_steps`, checked."""
        last = num_steps - 1 if self.exit_step is None else self.exit_step
        if not 0 <= last < num_steps:
            raise ValueError(
                f"refl: exit_step: expected 0 to {num_steps - 1}, the denoising steps, got {last}."
            )
        if not 1 <= self.num_gradient_steps <= last + 1:
            raise ValueError(
                f"refl: num_gradient_steps: expected 1 to {last + 1}, the forwards up to step "
                f"{last}, got {self.num_gradient_steps}."
            )
        return last


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflLoss:
    """The loss of some rows and what they earned."""

    loss: Tensor
    """[B] with a gradient."""
    reward: Tensor
    """[B], detached."""
    clean: Tensor
    """[B, C, F, H, W] the video that was judged, detached."""


class Refl:
    """Reward back-propagation on the RL loop: `algorithm.use: refl`; holds no state.

    The learner (`rlvid.learners.refl_objective`) walks the path and asks the reward. A plug-in is a
    class derived from it.
    """

    is_group_local = True

    def credit(
        self,
        scores: Mapping[str, Tensor],
        weights: Mapping[str, float],
        config: AdvantageConfig,
    ) -> Credit:
        """Scores [P, G] by scorer -> every rollout that has them all, and no advantage.

        The scores teach nothing; a rollout without one is left out, as by every algorithm, since
        its video may be broken. A group without spread is trained: a gradient needs no comparison.
        """
        reward, present = all_scored(scores, weights)
        return Credit(
            advantage=torch.zeros_like(reward, dtype=torch.float32),
            reward=reward.float(),
            trained=present,
            dropped=tuple(
                (row, NO_SCORE) for row in (~present.any(dim=1)).nonzero()[:, 0].tolist()
            ),
        )

    def path(
        self, num_steps: int, config: AlgorithmConfig, *, generator: torch.Generator
    ) -> GradientPath:
        """Return the steps of a group, of a schedule of `num_steps`."""
        refl = config.refl
        return GradientPath(
            num_gradient_steps=refl.num_gradient_steps,
            exit_step=draw_exit_step(num_steps, exit_frac=refl.exit_frac, generator=generator),
            crosses_inputs=refl.crosses_inputs,
        )

    def terms(
        self,
        rewards: Tensor,
        trained: Tensor,
        *,
        config: AlgorithmConfig,
        reference_distance: Tensor | None = None,
    ) -> LossTerms:
        """Return the loss of rows from their rewards [N], which have a gradient.

        Args:
            trained: [N] bool.
            reference_distance: [N] `velocity_distance` to the policy before RL, where it is held.
        """
        loss = reward_loss(rewards, target=config.refl.target)
        means = {"policy_loss": loss, "differentiable_reward": rewards}
        if reference_distance is not None:
            means["reference_distance"] = reference_distance
            loss = added(loss, reference_distance, weight=config.refl.reference_weight)
        return row_terms(trained, loss, means)


def draw_exit_step(
    num_steps: int,
    *,
    exit_frac: tuple[float, float] = REFL_EXIT_FRAC,
    generator: torch.Generator,
) -> int:
    """Draw a step evenly from a share of the schedule, [low, high) of `num_steps`."""
    # The 1e-9 keeps 0.3 * 10 from counting as 2.9999 or 3.0001.
    low, high = (int(share * num_steps + 1e-9) for share in exit_frac)
    if not 0 <= low < high <= num_steps:
        raise ValueError(
            f"refl: exit_frac: expected shares that hold a step of {num_steps}, got {exit_frac}."
        )
    return int(torch.randint(low, high, (1,), generator=generator))


def sample_with_gradient(
    velocity: VelocityFunction, latents: Tensor, sigmas: Sequence[float], path: GradientPath
) -> Tensor:
    """Return the clean video [B, C, F, H, W] of Euler steps, with the gradient of the last ones.

    The forwards before are taken without gradient, so their activations are not kept. The values
    are those of `rlvid.flow.sampler.sample_ode`, whatever the path, unless it exits early.

    Args:
        velocity: with guidance, if that is how videos are sampled.
        latents: [B, C, F, H, W] noise at sigmas[0].
        sigmas: [K + 1], descending to 0.
    """
    if sigmas[-1] != 0.0:
        raise ValueError(f"refl: sigmas: expected the last to be 0, got {sigmas[-1]}.")
    last = path.last_step(len(sigmas) - 1)
    first_kept = last + 1 - path.num_gradient_steps
    latents = latents.detach()
    for j in range(last + 1):
        sigma = latents.new_full((latents.shape[0],), sigmas[j])
        with torch.set_grad_enabled(torch.is_grad_enabled() and j >= first_kept):
            seen = latents if path.crosses_inputs else latents.detach()
            predicted = velocity(seen, sigma)
            if j == last:
                latents = predicted_clean(predicted, latents, sigma)
            else:
                latents = euler_step(
                    predicted, latents, sigma, torch.full_like(sigma, sigmas[j + 1])
                )
    return latents


def reward_loss(rewards: Tensor, *, target: float | None = None) -> Tensor:
    """Return -reward [B], or relu(target - reward), which stops a row that has reached the target.

    Args:
        target: in units of the reward; None sets no bound. A row at or past it has no gradient.
    """
    return -rewards if target is None else relu(target - rewards)


def refl_loss(
    velocity: VelocityFunction,
    latents: Tensor,
    sigmas: Sequence[float],
    *,
    decode: DecodeFunction,
    reward: RewardFunction,
    path: GradientPath,
    target: float | None = None,
) -> ReflLoss:
    """Sample, decode, judge, and return the loss of every row.

    Raises:
        ValueError: the reward is not one number a row, or carries no gradient, which a decoder or
            critic under `torch.no_grad` would hide.
    """
    clean = sample_with_gradient(velocity, latents, sigmas, path)
    rewards = judged(clean, decode=decode, reward=reward)
    return ReflLoss(
        loss=reward_loss(rewards, target=target), reward=rewards.detach(), clean=clean.detach()
    )


def judged(clean: Tensor, *, decode: DecodeFunction, reward: RewardFunction) -> Tensor:
    """Return the rewards [B] of clean latents [B, C, F, H, W], differentiable.

    Raises:
        ValueError: as `refl_loss`.
    """
    rewards = reward(decode(clean))
    if rewards.shape != (clean.shape[0],):
        raise ValueError(
            f"refl: reward: expected shape ({clean.shape[0]},), one number a video, got "
            f"{tuple(rewards.shape)}."
        )
    if torch.is_grad_enabled() and not rewards.requires_grad:
        raise ValueError(
            "refl: reward: expected a gradient with respect to the policy, got none. Neither the "
            "decoder nor the critic may run under torch.no_grad, and the policy must be trainable."
        )
    return rewards
