"""Stage `causal_init` by `consistency`: the same answer at neighbouring levels of a trajectory.

Each block has a level of its own and sees the clean blocks before it, as in `distill_causal_init`;
what is distilled is in `rlvid.algorithms.consistency`. Of a causal teacher (Causal Forcing,
arXiv:2602.02214) the levels are those of its many steps, and the clips are real ones. Of the
few-step student (arXiv:2604.25427) they are its few, one for all blocks since it is bidirectional,
and the clips are its own samples. No trajectory is walked: a state is a clip with noise.

Letters: B clips of a step over all ranks, K levels, N blocks, C F H W latents.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rlvid.algorithms.consistency import consistency_answer, consistency_loss, teacher_step
from rlvid.condition import Condition
from rlvid.config.distillation import CausalInitConfig
from rlvid.flow.causal_ode import ode_schedule
from rlvid.flow.sampler import initial_noise
from rlvid.learners.distill import DistillSettings, pick, with_transformer
from rlvid.learners.distill_causal_teacher import per_frame
from rlvid.learners.distill_clips import CleanClips
from rlvid.learners.distill_regression import RegressionLearner
from rlvid.learners.ema import Average
from rlvid.learners.zero_engine import ZeroEngine
from rlvid.models.student import Student, StudentSampling, open_causal
from rlvid.weights import trainable_parameters

TARGET = "target"
"""Stem of the target's files in a checkpoint."""


class ConsistencyLearner(RegressionLearner):
    """The student, its average, and a frozen copy of the policy it starts from, the teacher."""

    def __init__(self, settings: DistillSettings) -> None:
        super().__init__(settings)
        config = settings.stage_config
        assert isinstance(config, CausalInitConfig), "the stage's own section"
        self._config = config
        dtype, layout = settings.trainee.model.dtype, settings.layout
        self._num_blocks = layout.num_blocks(self.latent_shape[1])
        self._source = self.frozen(settings.trainee.policy)
        self.target = Target(
            copy.deepcopy(self._source.transformer),
            self.trainee.engine,
            decay=config.consistency.target_decay,
        )
        averaged = with_transformer(self.trainee.model, self.target.transformer)
        self._causal = open_causal(self.trainee.model, layout, dtype)
        self._causal_target = open_causal(averaged, layout, dtype)
        sigmas = settings.sampling.sigmas
        if config.teacher == "causal":
            self._causal_source = open_causal(self._source, layout, dtype)
            self._clips = CleanClips(self, config.consistency, place="causal_init.consistency")
            schedule = ode_schedule(sigmas, config.num_denoising_steps, settings.shift)
        else:
            self._sampler = Student(self._source, StudentSampling(sigmas=sigmas), dtype=dtype)
            schedule = (*sigmas, 0.0)
        self._schedule = torch.tensor(schedule)

    def step(self, step: int) -> dict[str, float]:
        metrics = super().step(step)
        self.target.follow()
        return metrics

    def losses(self, step: int, rows: Sequence[int]) -> Tensor:
        clean, condition = self._clean(step, rows)
        places = torch.stack([self._draw(self.seed("level", step, row)) for row in rows])
        sigma, following = (
            self._schedule[index].to(clean.device) for index in (places, places + 1)
        )
        size = self.settings.layout.frames_per_block
        level, level_next = per_frame(sigma, size), per_frame(following, size)
        noise = torch.stack(
            [initial_noise(self.seed("noise", step, row), self.latent_shape) for row in rows]
        ).to(clean.device)
        latents = (1.0 - level) * clean + level * noise
        with torch.no_grad():
            velocity = self._teacher_velocity(latents, sigma, condition, clean)
            state = teacher_step(velocity, latents, level, level_next)
            velocity = self._causal_target.velocity(state, following, condition, clean=clean)
            target = consistency_answer(velocity, state, level_next)
        velocity = self._causal.velocity(latents, sigma, condition, clean=clean)
        return consistency_loss(consistency_answer(velocity, latents, level), target)

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.target.save(folder)

    def load(self, folder: Path) -> None:
        super().load(folder)
        self.target.load(folder)

    @torch.no_grad()
    def _clean(self, step: int, rows: Sequence[int]) -> tuple[Tensor, Condition]:
        """Return clips [len(rows), C, F, H, W] and the condition of their prompts."""
        if self._config.teacher == "causal":
            clean, texts = self._clips.of(step, rows)
            return clean, self.trainee.model.encode_prompts(texts)
        condition = self.trainee.model.encode_prompts(pick(self.texts(step), rows))
        seeds = [self.seed("clean", step, row) for row in rows]
        return self._sampler.generate(seeds, self.latent_shape, condition), condition

    def _teacher_velocity(
        self, latents: Tensor, sigma: Tensor, condition: Condition, clean: Tensor
    ) -> Tensor:
        """Return the velocity of the teacher, guided if it is the causal one.

        Args:
            sigma: [B, N].
        """
        if self._config.teacher == "bidirectional_student":
            return self._source.velocity(latents, sigma[:, 0], condition)
        scale = self._config.guidance_scale
        conditional = self._causal_source.velocity(latents, sigma, condition, clean=clean)
        if scale == 1.0:
            return conditional
        empty = self.trainee.model.encode_prompts([""]).expand(condition.num_rows)
        negative = self._causal_source.velocity(latents, sigma, empty, clean=clean)
        return negative + scale * (conditional - negative)

    def _draw(self, seed: int) -> Tensor:
        """Return the place of each block's level in the schedule, [N]; the last level is 0."""
        generator = torch.Generator().manual_seed(seed)
        num_drawn = self._num_blocks if self._config.teacher == "causal" else 1
        drawn = torch.randint(len(self._schedule) - 1, (num_drawn,), generator=generator)
        return drawn.expand(self._num_blocks)


class Target:
    """The student's average as a transformer that answers, whole on each rank."""

    def __init__(self, transformer: nn.Module, engine: ZeroEngine, *, decay: float) -> None:
        """Start where the engine is; a collective.

        Args:
            transformer: frozen, with the engine's present values.
        """
        self.transformer = transformer
        self._decay = decay
        self._average = Average(engine, stem=TARGET)

    def follow(self) -> None:
        """Move towards the student as it is after a step; a collective."""
        self._average.move(self._decay)
        self._refresh()

    def save(self, folder: Path) -> None:
        """Write this rank's averages."""
        self._average.save(folder)

    def load(self, folder: Path) -> None:
        """Read what any number of ranks wrote; a collective."""
        self._average.load(folder)
        self._refresh()

    @torch.no_grad()
    def _refresh(self) -> None:
        held = trainable_parameters(self.transformer, "full")
        for name, value in self._average.full_parameters():
            held[name].copy_(value)
