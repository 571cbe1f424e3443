"""Stage `causal_teacher`: the bidirectional teacher made causal by teacher forcing.

Causal Forcing's first stage (arXiv:2602.02214): flow matching in which each block has a noise level
of its own and sees the clean blocks before it, which is what it sees when it generates.

Letters: B clips of a step over all ranks, N blocks, C F H W latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlvid.algorithms.flow_matching import flow_matching_loss, sample_sigma
from rlvid.config.distillation import CausalTeacherConfig
from rlvid.flow.sampler import initial_noise
from rlvid.learners.distill import DistillSettings
from rlvid.learners.distill_clips import CleanClips
from rlvid.learners.distill_regression import RegressionLearner
from rlvid.models.student import open_causal


class CausalTeacherLearner(RegressionLearner):
    """Trains on clean clips; its policy is sampled by the next stage alone."""

    is_student = False

    def __init__(self, settings: DistillSettings) -> None:
        super().__init__(settings)
        config = settings.stage_config
        assert isinstance(config, CausalTeacherConfig), "the stage's own section"
        self._config = config
        self._causal = open_causal(
            self.trainee.model, settings.layout, settings.trainee.model.dtype
        )
        self._num_blocks = settings.layout.num_blocks(self.latent_shape[1])
        self._clips = CleanClips(self, config, place="causal_teacher")

    def losses(self, step: int, rows: Sequence[int]) -> Tensor:
        clean, captions = self._clips.of(step, rows)
        device = self.trainee.engine.device
        draws = [self._draw(self.seed("row", step, row)) for row in rows]
        sigma = torch.stack([level for level, _ in draws]).to(device)
        texts = ["" if drops else text for text, (_, drops) in zip(captions, draws, strict=True)]
        noise = torch.stack(
            [initial_noise(self.seed("noise", step, row), self.latent_shape) for row in rows]
        ).to(device)
        levels = per_frame(sigma, self.settings.layout.frames_per_block)
        velocity = self._causal.velocity(
            (1.0 - levels) * clean + levels * noise,
            sigma,
            self.trainee.model.encode_prompts(texts),
            clean=clean,
        )
        return flow_matching_loss(velocity, clean, noise)

    def _draw(self, seed: int) -> tuple[Tensor, bool]:
        """Return a row's level for each block, [N], and whether it is trained without prompt."""
        generator = torch.Generator().manual_seed(seed)
        sigma = sample_sigma(
            self._num_blocks,
            density=self._config.timestep_density,
            shift=self.settings.shift,
            generator=generator,
        )
        return sigma, bool(torch.rand((), generator=generator) < self._config.prompt_dropout)


def per_frame(sigma: Tensor, frames_per_block: int) -> Tensor:
    """Return the level of each latent frame, [B, 1, F, 1, 1], of that of each block, [B, N]."""
    return sigma.repeat_interleave(frames_per_block, dim=1)[:, None, :, None, None]
