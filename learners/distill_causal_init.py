"""Stage `causal_init` by `ode`: a causal student regressed on where a teacher's trajectories end.

    L = E || x0(student at x_j, sigma_j) - x0 ||^2     j drawn for each block

with the clean blocks before it in sight, as when the student generates. The trajectories are made
anew for each step from prompts alone, so nothing is stored and a resume needs no files: by the
causal teacher's ODE (Causal Forcing, arXiv:2602.02214), or by the few-step bidirectional student
(arXiv:2604.25427).

Letters: B clips of a step over all ranks, S levels, N blocks, C F H W latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.config.distillation import CausalInitConfig
from rlvid.flow.causal_ode import (
    Trajectories,
    causal_trajectories,
    few_step_trajectories,
    ode_schedule,
)
from rlvid.flow.few_step import fresh_noise
from rlvid.learners.distill import DistillSettings, pick
from rlvid.learners.distill_causal_teacher import per_frame
from rlvid.learners.distill_regression import RegressionLearner
from rlvid.models.student import open_causal


class CausalInitLearner(RegressionLearner):
    """The student, and a frozen copy of the policy it starts from, whose trajectories it learns."""

    def __init__(self, settings: DistillSettings) -> None:
        super().__init__(settings)
        config = settings.stage_config
        assert isinstance(config, CausalInitConfig), "the stage's own section"
        self._config = config
        dtype = settings.trainee.model.dtype
        self._causal = open_causal(self.trainee.model, settings.layout, dtype)
        self._num_blocks = settings.layout.num_blocks(self.latent_shape[1])
        self._source = self.frozen(settings.trainee.policy)
        self._causal_source = open_causal(self._source, settings.layout, dtype)
        self._sigmas = settings.sampling.sigmas

    def losses(self, step: int, rows: Sequence[int]) -> Tensor:
        condition = self.trainee.model.encode_prompts(pick(self.texts(step), rows))
        made = self._trajectories([self.seed("noise", step, row) for row in rows], condition)
        levels = torch.stack([self._draw(self.seed("level", step, row)) for row in rows])
        states = choose_states(made.states, levels, self.settings.layout.frames_per_block)
        sigma = torch.tensor(self._sigmas)[levels].to(states.device)
        velocity = self._causal.velocity(states, sigma, condition, clean=made.clean)
        at = per_frame(sigma, self.settings.layout.frames_per_block)
        return (states - at * velocity - made.clean).square().flatten(1).mean(dim=1)

    @torch.no_grad()
    def _trajectories(self, seeds: Sequence[int], condition: Condition) -> Trajectories:
        channels, frames, height, width = self.latent_shape
        device = self.trainee.engine.device
        if self._config.teacher == "bidirectional_student":

            def whole(level: int) -> Tensor:
                return fresh_noise(seeds, self.latent_shape, level).to(device)

            return few_step_trajectories(
                lambda latents, sigma: self._source.velocity(latents, sigma, condition),
                whole(0),
                self._sigmas,
                step_noise=whole,
            )
        size = (channels, self.settings.layout.frames_per_block, height, width)
        return causal_trajectories(
            self._causal_source,
            condition,
            self.trainee.model.encode_prompts([""]),
            guidance_scale=self._config.guidance_scale,
            sigmas=self._sigmas,
            schedule=ode_schedule(
                self._sigmas, self._config.num_denoising_steps, self.settings.shift
            ),
            noise=lambda block: fresh_noise(seeds, size, block).to(device),
            num_blocks=self._num_blocks,
        )

    def _draw(self, seed: int) -> Tensor:
        """Return the index of a level for each block, [N]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(len(self._sigmas), (self._num_blocks,), generator=generator)


def choose_states(states: Tensor, levels: Tensor, frames_per_block: int) -> Tensor:
    """Return each block at its level, [B, C, F, H, W], of states [B, S, C, F, H, W].

    Args:
        levels: [B, N] indices of S.
    """
    of_frames = levels.repeat_interleave(frames_per_block, dim=1).to(states.device)
    index = of_frames[:, None, None, :, None, None].expand(-1, 1, *states.shape[2:])
    return states.gather(1, index)[:, 0]
