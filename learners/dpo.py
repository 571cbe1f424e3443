"""One rank of offline preference optimisation: Flow-DPO on stored pairs. A plain class.

The loss, its noise and its reference are those of online dpo (`forward_objective`, with
`rlvid.algorithms.dpo`); only where the pairs come from differs. Letters: B pairs of a step over all
ranks, L noise levels of a pair.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlvid.algorithms.dpo import Dpo
from rlvid.algorithms.forward_batch import ForwardBatch, noised, split_units
from rlvid.config import AlgorithmConfig, OfflineDpoConfig, Recipe, RolloutConfig
from rlvid.learners.forward_objective import ForwardObjective
from rlvid.learners.open_batch import MicroBatch
from rlvid.learners.preferences import open_preferences
from rlvid.learners.report import UpdateTotals
from rlvid.learners.rows import Visit, split_rows
from rlvid.learners.trainee import Trainee, TraineeSettings
from rlvid.models.base import VideoModel
from rlvid.models.noise_levels import training_shift
from rlvid.models.policy import Policy
from rlvid.records import StepReport

METRICS = (
    "dpo/loss/mean",
    "dpo/implicit_margin/mean",
    "dpo/pairs_right/frac",
    "dpo/grad_norm/total",
    "dpo/learning_rate/value",
)
"""Of a step, those of online dpo under a name of their own: a run may have both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoSettings:
    """The sections an offline dpo learner reads."""

    trainee: TraineeSettings
    dpo: OfflineDpoConfig
    rollout: RolloutConfig
    """For its shift: training visits the noise levels that sampling visits."""
    folder: Path
    """Where encoded clips are kept."""


def dpo_settings(recipe: Recipe, policy: Policy, folder: Path) -> DpoSettings:
    """Cut a recipe down to what the learner reads."""
    return DpoSettings(
        trainee=TraineeSettings(
            policy=policy,
            model=recipe.model,
            learner=recipe.dpo.learner,
            seed=recipe.seed,
            total_steps=recipe.dpo.num_steps,
            num_threads=recipe.cluster.threads_per_role,
        ),
        dpo=recipe.dpo,
        rollout=recipe.rollout,
        folder=folder,
    )


class DpoLearner:
    """Trains a policy on pairs of clips, against the policy that it began as."""

    def __init__(self, settings: DpoSettings, model: VideoModel | None = None) -> None:
        """Open and wrap the policy and find the pairs; a collective of all ranks."""
        self._settings = settings
        self._shift = training_shift(settings.rollout.shift, settings.trainee.model)
        self.trainee = Trainee(settings.trainee, model, before_wrapping=self._choose_objective)
        self._objective.attach(self.trainee.engine)
        self._preferences = open_preferences(
            settings.folder,
            settings.dpo,
            settings.trainee.model,
            self.trainee.model,
            self.trainee.engine.ranks,
        )
        size = settings.dpo.batch_size
        everything = tuple(range(len(self._preferences.pairs)))
        self._visits = [
            Visit(
                members=everything,
                seed=settings.trainee.seed,
                purpose="dpo",
                first=row,
                stride=size,
            )
            for row in range(size)
        ]
        self.num_micro_batches = 0
        """Forward and backward passes done; a sign of life for other threads."""

    @property
    def num_pairs(self) -> int:
        return len(self._preferences.pairs)

    def train_steps(self, first: int, last: int) -> list[StepReport]:
        """Take optimiser steps `first` to `last` - 1; a collective of all ranks."""
        return [self._train_step(step) for step in range(first, last)]

    def pair(self, step: int, row: int) -> ForwardBatch:
        """Return the rows [2 L] of one pair of a step, the same on every rank and after a resume.

        Noise and levels follow from recipe seed, step and row: a pair that is visited again is
        noised anew.
        """
        config, clips = self._settings.dpo, self._preferences.clips
        place = self._visits[row].clip(step)
        chosen, rejected = self._preferences.pairs[place]
        return noised(
            self._preferences.prompts[place],
            [clips.latents(chosen), clips.latents(rejected)],
            torch.tensor([1.0, -1.0]),
            [(0, 1)],
            config.forward,
            name=f"{step:06d}-{row:04d}",
            seed=self._settings.trainee.seed,
            shift=self._shift,
            device=self.trainee.engine.device,
        )

    def export(self, folder: Path) -> None:
        """Write the policy, and its average beside it; a collective."""
        self.trainee.export(folder)

    def canary(self, text: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents [1, C, F, H, W], sigma [1] and the velocity there; a collective."""
        return self.trainee.canary(text)

    def save(self, folder: Path) -> None:
        """Write weights, optimiser, average and RNG; a collective.

        The reference is read from the policy's files again.
        """
        self.trainee.save(folder, {})

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; right after opening."""
        self.trainee.load(folder)

    def _choose_objective(self, model: VideoModel) -> None:
        config, trainee = self._settings.dpo, self._settings.trainee
        self._objective = ForwardObjective(
            Dpo(),
            model,
            config=AlgorithmConfig(use="dpo", dpo=config.objective, forward=config.forward),
            rollout=self._settings.rollout,
            learner=trainee.learner,
            seed=trainee.seed,
            shift=self._shift,
        )

    def _train_step(self, step: int) -> StepReport:
        began = time.perf_counter()
        trainee, config = self.trainee, self._settings.dpo
        totals = UpdateTotals()
        rows = float(config.batch_size * config.forward.num_noise_levels)
        micro_batches = self._micro_batches(step)
        for number, micro_batch in enumerate(micro_batches):
            started = time.perf_counter()
            terms = self._objective.terms(micro_batch)
            is_last = number == len(micro_batches) - 1
            trainee.engine.backward(terms.loss_sum / rows, is_last=is_last)
            totals.add(
                terms,
                forward_rows=micro_batch.num_forwards,
                seconds=time.perf_counter() - started,
            )
            self.num_micro_batches += 1
        totals.learning_rate = trainee.next_learning_rate()
        totals.grad_norm = trainee.step()
        found = totals.metrics(trainee.engine.ranks, update_rows=rows)
        metrics = {name: found[f"learner/{name.removeprefix('dpo/')}"] for name in METRICS}
        metrics["dpo/pairs/per_s"] = config.batch_size / (time.perf_counter() - began)
        return StepReport(step=step, metrics=metrics)

    def _micro_batches(self, step: int) -> list[MicroBatch[ForwardBatch]]:
        """Return this rank's forwards; all ranks have equally many, those to fill up are empty."""
        learner = self._settings.trainee.learner
        found = []
        for rows, counted in split_rows(
            range(self._settings.dpo.batch_size), self.trainee.engine.ranks, 1
        ):
            for part in split_units(self.pair(step, rows[0]), learner.micro_batch_rows):
                micro_batch = MicroBatch(
                    batch=part, is_fresh=False, num_forwards=part.sigma.numel()
                )
                found.append(micro_batch if counted.all() else micro_batch.emptied())
        return found
