"""One rank of supervised fine-tuning: flow matching on cached latents. A plain class.

Letters: B clips of a step over all ranks, C F H W latents.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlvid.algorithms.flow_matching import add_noise, flow_matching_loss, sample_sigma
from rlvid.config import Recipe, SftConfig
from rlvid.data.prompts import seeded_order
from rlvid.learners.latents import open_latents
from rlvid.learners.trainee import Trainee, TraineeSettings
from rlvid.models.base import VideoModel
from rlvid.models.policy import Policy
from rlvid.records import StepReport
from rlvid.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSettings:
    """The sections an SFT learner reads."""

    trainee: TraineeSettings
    sft: SftConfig
    shift: float
    """Of the sigma schedule; training visits the levels that sampling visits."""
    folder: Path
    """Where the encoded clips are kept."""


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
        shift=recipe.rollout.shift,
        folder=folder,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SftBatch:
    """Everything random about one step, over all ranks; a function of (seed, step)."""

    indices: tuple[int, ...]
    """[B] clips."""
    sigma: Tensor
    """[B] float32."""
    noise: Tensor
    """[B, C, F, H, W] float32."""
    drops_prompt: Tensor
    """[B] bool; these are trained with the empty prompt."""


class SftLearner:
    """Trains a policy on clips."""

    def __init__(self, settings: SftSettings, model: VideoModel | None = None) -> None:
        """Open and wrap the policy and encode the clips; a collective of all ranks."""
        self._settings = settings
        self._order: tuple[int, tuple[int, ...]] = (-1, ())
        self.trainee = Trainee(settings.trainee, model)
        self._clips = open_latents(
            settings.folder,
            settings.sft,
            settings.trainee.model,
            self.trainee.model,
            self.trainee.engine.ranks,
        )

    def train_steps(self, first: int, last: int) -> list[StepReport]:
        """Take optimiser steps `first` to `last` - 1; a collective of all ranks."""
        return [self._train_step(step) for step in range(first, last)]

    def batch(self, step: int) -> SftBatch:
        """Return what step `step` trains on, the same on every rank and after every resume."""
        config, seed = self._settings.sft, self._settings.trainee.seed
        size, num_clips = config.batch_size, len(self._clips)
        indices = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, num_clips)
            if self._order[0] != epoch:
                self._order = epoch, seeded_order(seed, "sft", epoch, num_clips)
            indices.append(self._order[1][place])
        generator = torch.Generator().manual_seed(derive_seed(seed, "sft", step))
        sigma = sample_sigma(
            size,
            density=config.timestep_density,
            shift=self._settings.shift,
            generator=generator,
        )
        shape = self._clips.latents(0).shape
        return SftBatch(
            indices=tuple(indices),
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
        loss_sum = 0.0
        parts = self._parts(len(batch.indices))
        for number, (rows, weight) in enumerate(parts):
            losses = self._losses(batch, rows) * weight.to(trainee.engine.device)
            loss = losses.sum() / len(batch.indices)
            trainee.engine.backward(loss, is_last=number == len(parts) - 1)
            loss_sum += float(loss.detach())
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
            },
        )

    def _parts(self, size: int) -> list[tuple[list[int], Tensor]]:
        """Return this rank's micro-batches: rows of the batch and their weights, 1 or 0.

        All ranks get equally many of equal size, which ZeRO's collectives need; where the batch
        does not divide, a row of weight 0 fills up.
        """
        ranks = self.trainee.engine.ranks
        per_rank = math.ceil(size / ranks.world_size)
        rows = list(range(ranks.rank, size, ranks.world_size))
        weight = torch.ones(per_rank)
        weight[len(rows) :] = 0.0
        rows += [0] * (per_rank - len(rows))
        limit = self._settings.trainee.learner.micro_batch_rows
        return [
            (rows[start : start + limit], weight[start : start + limit])
            for start in range(0, per_rank, limit)
        ]

    def _losses(self, batch: SftBatch, rows: Sequence[int]) -> Tensor:
        """Return the loss [len(rows)] of rows of the batch."""
        device = self.trainee.engine.device
        clean = torch.stack([self._clips.latents(batch.indices[row]) for row in rows]).to(device)
        noise = batch.noise[list(rows)].to(device)
        sigma = batch.sigma[list(rows)].to(device)
        texts = [
            "" if batch.drops_prompt[row] else self._clips.text(batch.indices[row]) for row in rows
        ]
        model = self.trainee.model
        velocity = model.velocity(
            add_noise(clean, noise, sigma), sigma, model.encode_prompts(texts)
        )
        return flow_matching_loss(velocity, clean, noise)
