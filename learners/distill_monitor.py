"""Watches the motion of a student in training; on every rank, as a collective."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.evaluation.motion import has_faded, mean_motion
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import initial_noise, sample_ode
from rlvid.models.base import VideoModel
from rlvid.models.student import Student

if TYPE_CHECKING:
    from rlvid.learners.distill import StageLearner

IS_FADED = "distillation/motion/is_faded"
"""Metric that ends a stage: 1 where motion has faded, else 0."""


class MotionMonitor:
    """Compares the student's clips with the teacher's, of the same prompts and seeds."""

    def __init__(self, stage: StageLearner, teacher: VideoModel, student: Student) -> None:
        self._stage = stage
        self._teacher = teacher
        self._student = student
        config = stage.settings.config.monitor
        self._config = config
        prompts = stage.settings.prompts
        self._prompts = [prompts[n % len(prompts)] for n in range(config.num_prompts)]
        self.teacher_motion: float | None = None
        """None until it is measured; every start measures it anew, from the same seeds."""
        self.best = 0.0
        """The most motion that the student has had; part of the training state."""

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return the metrics of the student as it is; a collective of all ranks."""
        if self.teacher_motion is None:
            self.teacher_motion = self._mean(is_teacher=True)
        teacher, motion = self.teacher_motion, self._mean(is_teacher=False)
        self.best = max(self.best, motion)
        faded = has_faded(motion, teacher=teacher, best=self.best, min_frac=self._config.min_frac)
        return {
            "distillation/motion/mean": motion,
            "distillation/motion/teacher": teacher,
            IS_FADED: float(faded),
        }

    def _mean(self, *, is_teacher: bool) -> float:
        stage, total = self._stage, 0.0
        for rows, counted in stage.parts(len(self._prompts)):
            condition, negative = stage.conditions([self._prompts[row] for row in rows])
            seeds = [stage.seed("motion", row) for row in rows]
            clips = (
                self._by_teacher(seeds, condition, negative)
                if is_teacher
                else self._by_student(seeds, condition)
            )
            total += float((mean_motion(stage.trainee.model.decode(clips)).cpu() * counted).sum())
            stage.num_micro_batches += 1
        return stage.trainee.engine.ranks.sum([total])[0] / len(self._prompts)

    def _by_student(self, seeds: list[int], condition: Condition) -> Tensor:
        return self._student.generate(seeds, self._stage.latent_shape, condition)

    def _by_teacher(self, seeds: list[int], condition: Condition, negative: Condition) -> Tensor:
        settings, model = self._stage.settings, self._teacher
        noise = torch.stack([initial_noise(seed, self._stage.latent_shape) for seed in seeds])
        scale = settings.guidance_scale
        away = None if scale == 1.0 else negative
        return sample_ode(
            lambda latents, sigma: guided_velocity(model, latents, sigma, condition, away, scale),
            noise.to(model.device),
            settings.teacher_sigmas,
        )
