"""Stages `few_step` and `self_forcing`: distribution matching of a student with a teacher.

Both are DMD2 (arXiv:2405.14867) and differ in how the student makes a clip: at once, or block by
block on its own output (Self-Forcing, arXiv:2506.08009), with the loss on the whole clip. Every
step trains the fake score on fresh clips of the student, every fifth the student before it. Input
and gradient are those of one random level of the student's list, shared by all clips and blocks.
DMD2's GAN term, where it has a weight, is in `distill_gan`.

Letters: B clips of a step over all ranks, C F H W latents, L text tokens, D text size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rlvid.algorithms.dmd import (
    dmd_gradient,
    dmd_loss,
    draw_score_sigma,
    fake_score_loss,
    updates_student,
)
from rlvid.algorithms.flow_matching import add_noise
from rlvid.condition import Condition
from rlvid.config.distillation import DmdConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import initial_noise
from rlvid.learners.distill import DistillSettings, StageLearner, pick, with_transformer
from rlvid.learners.distill_gan import GanTerm, add_head
from rlvid.learners.distill_monitor import MotionMonitor
from rlvid.learners.trainee import Trainee
from rlvid.models.student import Student
from rlvid.records import Prompt
from rlvid.seeds import derive_seed

FAKE = "fake"
"""Folder of the fake score in a checkpoint."""


class DmdLearner(StageLearner):
    """Student and fake score on an engine each, and the frozen teacher."""

    def __init__(self, settings: DistillSettings) -> None:
        super().__init__(settings)
        config = settings.stage_config
        assert isinstance(config, DmdConfig), "a stage of distribution matching"
        self._config = config
        self._student = Student(
            self.trainee.model, settings.sampling, dtype=settings.trainee.model.dtype
        )
        self._teacher = self.frozen(settings.teacher)
        learner = settings.trainee.learner.model_copy(
            update={"optimizer": config.fake_optimizer, "ema": None}
        )
        transformer = copy.deepcopy(self._teacher.transformer)
        if config.gan.weight:
            add_head(transformer, config.gan, seed=self.seed("discriminator"))
        self._fake = Trainee(
            replace(
                settings.trainee,
                policy=settings.teacher,
                learner=learner,
                total_steps=config.num_steps,
            ),
            with_transformer(self.trainee.model, transformer),
        )
        self._gan = GanTerm(self, self._fake, config.gan) if config.gan.weight else None
        self.monitor = MotionMonitor(self, self._teacher, self._student)

    def step(self, step: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        every = self._config.fake_updates_per_student
        if updates_student(step, fake_updates_per_student=every):
            metrics |= self._update_student(step)
        metrics |= self._update_fake(step)
        if self._is_last_of_checkpoint(step):
            metrics |= self.monitor.measure()
        return metrics

    def save(self, folder: Path) -> None:
        self.trainee.save(folder, {"best_motion": self.monitor.best})
        (folder / FAKE).mkdir(exist_ok=True)
        self._fake.save(folder / FAKE, {})

    def load(self, folder: Path) -> None:
        self.monitor.best = float(self.trainee.load(folder)["best_motion"])
        self._fake.load(folder / FAKE)

    def _update_student(self, step: int) -> dict[str, float]:
        engine, prompts = self.trainee.engine, self.prompts(step)
        parts, gradient_sum, gan_sum = self.parts(len(prompts)), 0.0, 0.0
        for number, (rows, counted) in enumerate(parts):
            condition, negative = self.conditions(pick(prompts, rows))
            clean = self._generate(step, "student", rows, condition)
            seeds = [self.seed("score", step, row) for row in rows]
            gradient = self._gradient(clean, condition, negative, seeds)
            weight = counted.to(engine.device)
            gradient_sum += float((gradient.abs().flatten(1).mean(dim=1) * weight).sum())
            if self._gan is not None:
                sigma, noise = self._noise_of([self.seed("realism", step, row) for row in rows])
                added = self._gan.student_gradient(clean, noise, sigma, condition)
                gan_sum += float((added.abs().flatten(1).mean(dim=1) * weight).sum())
                gradient = gradient + added
            losses = dmd_loss(clean, gradient) / gradient[0].numel()
            loss = (losses * weight).sum() / len(prompts)
            engine.backward(loss, is_last=number == len(parts) - 1)
            self.num_micro_batches += 1
        rate = self.trainee.next_learning_rate()
        norm = self.trainee.step()
        sums = engine.ranks.sum([gradient_sum, gan_sum])
        metrics = {
            "distillation/dmd_gradient/mean": sums[0] / len(prompts),
            "distillation/grad_norm/total": norm,
            "distillation/learning_rate/value": rate,
        }
        if self._gan is not None:
            metrics["distillation/gan_gradient/mean"] = sums[1] / len(prompts)
        return metrics

    def _update_fake(self, step: int) -> dict[str, float]:
        engine, prompts = self._fake.engine, self.prompts(step)
        parts, loss_sum, judged_sum = self.parts(len(prompts)), 0.0, 0.0
        for number, (rows, counted) in enumerate(parts):
            share = counted.to(engine.device)
            if self._gan is not None:
                judged = (self._real_losses(step, rows) * share).sum() / len(prompts)
                engine.backward(judged, is_last=False)
                judged_sum += float(judged.detach())
            losses, of_head = self._fake_losses(step, rows, pick(prompts, rows))
            loss = (losses * share).sum() / len(prompts)
            loss_sum += float(loss.detach())
            if of_head is not None:
                judged = (of_head * share).sum() / len(prompts)
                judged_sum += float(judged.detach())
                loss = loss + judged
            engine.backward(loss, is_last=number == len(parts) - 1)
            self.num_micro_batches += 1
        norm = self._fake.step()
        sums = engine.ranks.sum([loss_sum, judged_sum])
        metrics = {
            "distillation/fake_loss/mean": sums[0],
            "distillation/fake_grad_norm/total": norm,
        }
        if self._gan is not None:
            metrics["distillation/discriminator_loss/mean"] = sums[1]
        return metrics

    def _fake_losses(
        self, step: int, rows: Sequence[int], prompts: Sequence[Prompt]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the fake score's loss [len(rows)] on fresh clips, and the discriminator's."""
        condition, _ = self.conditions(prompts)
        with torch.no_grad():
            clean = self._generate(step, FAKE, rows, condition)
        sigma, noise = self._noise_of([self.seed("fake score", step, row) for row in rows])
        latents = add_noise(clean, noise, sigma)
        if self._gan is None:
            velocity, of_head = self._fake.model.velocity(latents, sigma, condition), None
        else:
            velocity, of_head = self._gan.fake_losses(latents, sigma, condition)
        return fake_score_loss(velocity, clean, noise, sigma), of_head

    def _real_losses(self, step: int, rows: Sequence[int]) -> Tensor:
        """Return the discriminator's loss [len(rows)] on real clips, noised as the student's."""
        assert self._gan is not None, "asked only where the term is on"
        sigma, noise = self._noise_of([self.seed("real", step, row) for row in rows])
        return self._gan.real_losses(step, rows, noise, sigma)

    def _generate(
        self, step: int, purpose: str, rows: Sequence[int], condition: Condition
    ) -> Tensor:
        """Return clips [len(rows), C, F, H, W] of the student, as predicted at the step's level."""
        num_levels = len(self.settings.sampling.sigmas)
        return self._student.generate(
            [self.seed("noise", purpose, step, row) for row in rows],
            self.latent_shape,
            condition,
            exit_step=self.seed("exit", purpose, step) % num_levels,
        )

    @torch.no_grad()
    def _gradient(
        self, clean: Tensor, condition: Condition, negative: Condition, seeds: Sequence[int]
    ) -> Tensor:
        """Return the gradient with respect to clips of the student, [B, C, F, H, W]."""
        sigma, noise = self._noise_of(seeds)
        latents = add_noise(clean, noise, sigma)
        scale = self._config.real_guidance_scale
        away = None if scale == 1.0 else negative
        real = guided_velocity(self._teacher, latents, sigma, condition, away, scale)
        fake = self._fake.model.velocity(latents, sigma, condition)
        return dmd_gradient(clean, latents, sigma, real_velocity=real, fake_velocity=fake)

    def _noise_of(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the level [B] and the noise [B, C, F, H, W] of rows; functions of their seeds."""
        device = self.trainee.engine.device
        levels = [
            draw_score_sigma(
                1,
                generator=torch.Generator().manual_seed(seed),
                shift=self.settings.shift,
                sigma_range=self._config.sigma_range,
            )
            for seed in seeds
        ]
        noise = [initial_noise(derive_seed(seed, "noise"), self.latent_shape) for seed in seeds]
        return torch.cat(levels).to(device), torch.stack(noise).to(device)

    def _is_last_of_checkpoint(self, step: int) -> bool:
        every = self.settings.config.checkpoint.every
        return (step + 1) % every == 0 or step + 1 == self._config.num_steps
