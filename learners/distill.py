"""One rank of a stage of distillation: what the stages share. Plain classes.

few_step, self_forcing     rlvid.learners.distill_dmd (+ distill_gan)
causal_teacher             rlvid.learners.distill_causal_teacher
causal_init                rlvid.learners.distill_causal_init, or distill_consistency
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from rlvid.condition import Condition
from rlvid.config import DistillationConfig, Recipe
from rlvid.config.distillation import DMD_STAGES, StageConfig, StageName
from rlvid.data.prompts import load_prompts, load_text_prompts, prompts_for_step
from rlvid.flow.few_step import student_sigmas
from rlvid.flow.prompt_condition import prompt_condition
from rlvid.flow.sigmas import Shift
from rlvid.learners.rows import split_rows
from rlvid.learners.trainee import Trainee, TraineeSettings
from rlvid.models.base import VideoModel
from rlvid.models.causal_layout import BlockLayout
from rlvid.models.noise_levels import sampling_sigmas, training_shift
from rlvid.models.policy import Policy, open_policy
from rlvid.models.student import StudentSampling
from rlvid.records import Prompt, StepReport
from rlvid.seeds import derive_seed

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """What a stage's learner reads."""

    trainee: TraineeSettings
    """Of the student; its policy is what the stage starts from."""
    stage: StageName
    config: DistillationConfig
    teacher: Policy
    """What the phase was given: the real score, and the start of the fake one."""
    prompts: tuple[Prompt, ...]
    shift: Shift
    """Of the noise levels."""
    teacher_sigmas: tuple[float, ...]
    """That the teacher's clips of the monitor are sampled with, as evaluation does."""
    guidance_scale: float
    """That the teacher's clips of the monitor are sampled with, as evaluation does."""
    folder: Path
    """Of the stage; encoded clips are kept there."""

    @property
    def stage_config(self) -> StageConfig:
        found: StageConfig = getattr(self.config, self.stage)
        return found

    @property
    def layout(self) -> BlockLayout:
        """Of the causal student."""
        return BlockLayout(**self.config.causal.model_dump())

    @property
    def sampling(self) -> StudentSampling:
        """How the stage's student is sampled."""
        return StudentSampling(
            sigmas=student_sigmas(self.config.student_steps, self.shift),
            layout=None if self.stage == "few_step" else self.layout,
        )


def distill_settings(
    recipe: Recipe, stage: StageName, start: Policy, teacher: Policy, folder: Path
) -> DistillSettings:
    """Cut a recipe down to what the learner of a stage reads.

    Args:
        start: the policy that the stage trains on.
        teacher: the policy that the phase was given.
    """
    config = recipe.distillation
    own: StageConfig = getattr(config, stage)
    learner = config.learner.model_copy(update={"optimizer": own.optimizer, "ema": own.ema})
    total_steps = own.num_steps
    if stage in DMD_STAGES:
        total_steps = -(-own.num_steps // getattr(config, stage).fake_updates_per_student)
    return DistillSettings(
        trainee=TraineeSettings(
            policy=start,
            model=recipe.model,
            learner=learner,
            seed=recipe.seed,
            total_steps=total_steps,
            num_threads=recipe.cluster.threads_per_role,
        ),
        stage=stage,
        config=config,
        teacher=teacher,
        prompts=distilled_prompts(recipe),
        shift=training_shift(recipe.rollout.shift, recipe.model),
        teacher_sigmas=sampling_sigmas(
            recipe.rollout.shift, recipe.model, config.teacher_denoising_steps
        ),
        guidance_scale=recipe.evaluate.guidance_scale or recipe.rollout.guidance_scale,
        folder=folder,
    )


def distilled_prompts(recipe: Recipe) -> tuple[Prompt, ...]:
    """Return the phase's prompts.

    Raises:
        ValueError: they have media, which the recipe's stages would leave out unseen.
    """
    config = recipe.distillation
    source = config.prompts or recipe.prompts
    if config.tells_media:
        return load_prompts(source)
    return load_text_prompts(source, who="distillation.prompts")


class StageLearner:
    """Holds the student and takes steps; a stage says what a step is."""

    is_student = True
    """Whether what is trained is sampled with the student's few steps."""

    def __init__(self, settings: DistillSettings) -> None:
        """Open and wrap the student; a collective of all ranks."""
        self.settings = settings
        self.trainee = Trainee(settings.trainee)
        model = settings.trainee.model
        self.latent_shape = self.trainee.model.latent_shape(
            model.num_frames, model.height, model.width
        )
        self.num_micro_batches = 0
        """Finished ones, a sign of life."""

    def train_steps(self, first: int, last: int) -> list[StepReport]:
        """Take steps `first` to `last` - 1; a collective of all ranks."""
        reports = []
        for step in range(first, last):
            started = time.perf_counter()
            metrics = dict(self.step(step))
            seconds = time.perf_counter() - started
            metrics["distillation/clips/per_s"] = self.settings.stage_config.batch_size / seconds
            reports.append(StepReport(step=step, metrics=metrics))
        return reports

    def step(self, step: int) -> Mapping[str, float]:
        """Take one step and return its metrics; a function of (seed, step) and the weights."""
        raise NotImplementedError

    def export(self, folder: Path) -> None:
        """Write the policy, and its average beside it, with how they are sampled; a collective."""
        self.trainee.export(folder)
        if self.trainee.rank == 0 and self.is_student:
            self.settings.sampling.save(folder)
            if self.trainee.ema is not None:
                self.settings.sampling.save(folder.with_name(f"{folder.name}_ema"))

    def canary(self, text: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents [1, C, F, H, W], sigma [1] and the velocity there; a collective."""
        return self.trainee.canary(text)

    def save(self, folder: Path) -> None:
        """Write weights, optimiser, average and RNG; a collective."""
        self.trainee.save(folder, {})

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; right after opening."""
        self.trainee.load(folder)

    def seed(self, *place: int | str) -> int:
        """Return the seed of a place in the stage."""
        return derive_seed(self.settings.trainee.seed, self.settings.stage, *place)

    def prompts(self, step: int) -> list[Prompt]:
        """Return the prompts of a step over all ranks, [batch_size]."""
        size = self.settings.stage_config.batch_size
        visits = prompts_for_step(self.settings.prompts, self.settings.trainee.seed, step, size)
        return [prompt for prompt, _ in visits]

    def texts(self, step: int) -> list[str]:
        """Return what the model reads of them."""
        return [prompt.model_text for prompt in self.prompts(step)]

    def conditions(self, prompts: Sequence[Prompt]) -> tuple[Condition, Condition]:
        """Return the condition of prompts with their media, and the negative of guidance."""
        return prompt_condition(self.trainee.model, prompts, self.latent_shape)

    def parts(self, num_rows: int) -> list[tuple[list[int], Tensor]]:
        """Return this rank's micro-batches of a batch; see `split_rows`."""
        limit = self.settings.trainee.learner.micro_batch_rows
        return split_rows(range(num_rows), self.trainee.engine.ranks, limit)

    def frozen(self, policy: Policy) -> VideoModel:
        """Return a policy that is not trained, sharing all but the transformer with the student."""
        device = str(self.trainee.engine.device)
        opened = open_policy(policy, self.settings.trainee.model, device)
        return with_transformer(self.trainee.model, opened.transformer.requires_grad_(False))


def with_transformer(model: VideoModel, transformer: nn.Module) -> VideoModel:
    """Return a model that shares text encoder and VAE with another."""
    other = copy.copy(model)
    other.transformer = transformer
    return other


def pick(values: Sequence[Value], rows: Sequence[int]) -> list[Value]:
    """Return the values of rows."""
    return [values[row] for row in rows]
