"""One rank of supervised fine-tuning: flow matching on cached latents. A plain class.

    L = 1/B sum_i w_i ||v - (noise - clean_i)||^2  +  beta/A sum_j ||v - (noise - real_j)||^2

with w = 1 and beta = 0 for plain fine-tuning (`rlvid.algorithms.reward_weighted` has the rest).

Letters: B clips of a step over all ranks, A real clips of its anchor, R = B + A rows, C F H W
latents.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlvid.algorithms.flow_matching import add_noise, flow_matching_loss, sample_sigma
from rlvid.algorithms.projection import project_conflicts
from rlvid.condition import Condition
from rlvid.config import Recipe, SftConfig
from rlvid.flow.sigmas import Shift
from rlvid.learners.rows import Visit, split_rows
from rlvid.learners.trainee import Trainee, TraineeSettings
from rlvid.learners.training_set import TrainingSet, clip_condition, open_training_set
from rlvid.models.base import VideoModel
from rlvid.models.noise_levels import training_shift
from rlvid.models.policy import Policy
from rlvid.records import StepReport
from rlvid.seeds import derive_seed

REAL = "real"
"""Task of the anchor's rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSettings:
    """The sections an SFT learner reads."""

    trainee: TraineeSettings
    sft: SftConfig
    shift: Shift
    """Of the sigma schedule; training visits the levels that sampling visits."""
    folder: Path
    """Where the encoded clips are kept."""
    dimension: str | None = None
    """Of a data set, train on the clips of this dimension; None trains on all."""


def sft_settings(recipe: Recipe, policy: Policy, folder: Path) -> SftSettings:
    """Cut a recipe down to what the learner reads."""
    return SftSettings(
        trainee=TraineeSettings(
            policy=policy,
            model=recipe.model,
            learner=recipe.sft.learner,
            seed=recipe.seed,
            total_steps=recipe.sft.num_steps,
            num_threads=recipe.cluster.threads_per_role,
            initialise=recipe.sft.initialise,
        ),
        sft=recipe.sft,
        shift=training_shift(recipe.rollout.shift, recipe.model),
        folder=folder,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SftBatch:
    """Everything random about one step, over all ranks; a function of (seed, step)."""

    indices: tuple[int, ...]
    """[R] clips, the first B synthetic ones, then A real ones."""
    weight: Tensor
    """[R] float32: what each row's loss counts, over B."""
    tasks: tuple[str, ...]
    """[R] dimension of each row, REAL for the anchor's."""
    sigma: Tensor
    """[R] float32."""
    noise: Tensor
    """[R, C, F, H, W] float32."""
    drops_prompt: Tensor
    """[R] bool; these are trained with the empty prompt."""


class SftLearner:
    """Trains a policy on clips."""

    def __init__(self, settings: SftSettings, model: VideoModel | None = None) -> None:
        """Open and wrap the policy and encode the clips; a collective of all ranks."""
        self._settings = settings
        self.trainee = Trainee(settings.trainee, model)
        self._set = open_training_set(
            settings.folder,
            settings.sft,
            settings.trainee.model,
            self.trainee.model,
            self.trainee.engine.ranks,
            dimension=settings.dimension,
        )
        self._visits = _visits(settings.sft, self._set, settings.trainee.seed)

    def train_steps(self, first: int, last: int) -> list[StepReport]:
        """Take optimiser steps `first` to `last` - 1; a collective of all ranks."""
        return [self._train_step(step) for step in range(first, last)]

    def batch(self, step: int) -> SftBatch:
        """Return what step `step` trains on, the same on every rank and after every resume."""
        config, seed = self._settings.sft, self._settings.trainee.seed
        indices = [visit.clip(step) for visit in self._visits]
        num_real = config.anchor.batch_size if self._set.real is not None else 0
        beta = config.anchor.beta * config.batch_size / max(num_real, 1)
        synthetic = indices[: config.batch_size]
        size = len(indices)
        generator = torch.Generator().manual_seed(derive_seed(seed, "sft", step))
        sigma = sample_sigma(
            size,
            density=config.timestep_density,
            shift=self._settings.shift,
            generator=generator,
        )
        shape = self._set.clips.latents(0).shape
        return SftBatch(
            indices=tuple(indices),
            weight=torch.cat([self._set.weights[synthetic], torch.full((num_real,), beta)]),
            tasks=(*(self._set.dimensions[i] for i in synthetic), *(REAL,) * num_real),
            sigma=sigma,
            noise=torch.randn(size, *shape, generator=generator),
            drops_prompt=torch.rand(size, generator=generator) < config.prompt_dropout,
        )

    def export(self, folder: Path) -> None:
        """Write the policy, and its average beside it; a collective."""
        self.trainee.export(folder)

    def canary(self, text: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents [1, C, F, H, W], sigma [1] and the velocity there; a collective."""
        return self.trainee.canary(text)

    def save(self, folder: Path) -> None:
        """Write weights, optimiser, average and RNG; a collective."""
        self.trainee.save(folder, {})

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; right after opening."""
        self.trainee.load(folder)

    def _train_step(self, step: int) -> StepReport:
        started = time.perf_counter()
        trainee, ranks = self.trainee, self.trainee.engine.ranks
        batch = self.batch(step)
        conflicts: dict[str, float] = {}
        if self._settings.sft.balance == "projection":
            loss_sum, conflicts["sft/projection/conflicts"] = self._projected(batch, step)
        else:
            loss_sum = self._add_gradient(batch, range(len(batch.indices)))
        rate = trainee.next_learning_rate()
        norm = trainee.step()
        seconds = time.perf_counter() - started
        return StepReport(
            step=step,
            metrics={
                "sft/loss/mean": ranks.sum([loss_sum])[0],
                "sft/grad_norm/total": norm,
                "sft/learning_rate/value": rate,
                "sft/clips/per_s": len(batch.indices) / seconds,
                **conflicts,
            },
        )

    def _add_gradient(self, batch: SftBatch, rows: Sequence[int]) -> float:
        """Add the gradient of rows of the batch; return this rank's share of their loss."""
        engine, size = self.trainee.engine, self._settings.sft.batch_size
        limit = self._settings.trainee.learner.micro_batch_rows
        parts, loss_sum = split_rows(rows, engine.ranks, limit), 0.0
        for number, (mine, counted) in enumerate(parts):
            weight = (counted * batch.weight[mine]).to(engine.device)
            loss = (self._losses(batch, mine) * weight).sum() / size
            engine.backward(loss, is_last=number == len(parts) - 1)
            loss_sum += float(loss.detach())
        return loss_sum

    def _projected(self, batch: SftBatch, step: int) -> tuple[float, int]:
        """Leave the sum of the tasks' gradients after projection; return loss and conflicts."""
        engine, loss_sum = self.trainee.engine, 0.0
        gradients = []
        for task in dict.fromkeys(batch.tasks):
            loss_sum += self._add_gradient(
                batch, [row for row, name in enumerate(batch.tasks) if name == task]
            )
            gradients.append(engine.take_gradients())
        seed = derive_seed(self._settings.trainee.seed, "projection", step)
        combined, num_conflicts = project_conflicts(gradients, seed=seed)
        engine.put_gradients(combined)
        return loss_sum, num_conflicts

    def _losses(self, batch: SftBatch, rows: Sequence[int]) -> Tensor:
        """Return the loss [len(rows)] of rows of the batch."""
        device = self.trainee.engine.device
        clips = [self._clip(batch, row) for row in rows]
        clean = torch.stack([latents for latents, _, _ in clips]).to(device)
        noise = batch.noise[list(rows)].to(device)
        sigma = batch.sigma[list(rows)].to(device)
        texts = [
            "" if batch.drops_prompt[row] else text
            for row, (_, text, _) in zip(rows, clips, strict=True)
        ]
        model = self.trainee.model
        condition = clip_condition(model, texts, [frames for _, _, frames in clips])
        velocity = model.velocity(add_noise(clean, noise, sigma), sigma, condition)
        return flow_matching_loss(velocity, clean, noise)

    def _clip(self, batch: SftBatch, row: int) -> tuple[Tensor, str, Condition | None]:
        """Return latents, caption and own frames of a row of the batch."""
        source = self._set.real if batch.tasks[row] == REAL else self._set.clips
        assert source is not None, "an anchor has real clips"
        index = batch.indices[row]
        return source.latents(index), source.text(index), source.frames(index)


def _visits(config: SftConfig, training: TrainingSet, seed: int) -> tuple[Visit, ...]:
    """Return what each row of a batch goes through: all clips, or those of one dimension."""
    everything = tuple(range(len(training.clips)))
    groups: list[tuple[str, tuple[int, ...]]] = [("sft", everything)]
    if config.balance != "none":
        names = sorted(set(training.dimensions))
        groups = [
            (f"sft {name}", tuple(i for i in everything if training.dimensions[i] == name))
            for name in names
        ]
    rows = []
    for row in range(config.batch_size):
        purpose, members = groups[row % len(groups)]
        stride = len(range(row % len(groups), config.batch_size, len(groups)))
        rows.append(
            Visit(
                members=members,
                seed=seed,
                purpose=purpose,
                first=row // len(groups),
                stride=stride,
            )
        )
    if training.real is not None:
        real, size = tuple(range(len(training.real))), config.anchor.batch_size
        rows += [
            Visit(members=real, seed=seed, purpose="sft anchor", first=row, stride=size)
            for row in range(size)
        ]
    return tuple(rows)
