"""One rank of the RL learner: what it holds, trains, publishes and saves. A plain class.

Every rank is given every reward and works out the same credit; each then trains its share of the
groups. A batch comes in one or more chunks, which `batch_trainer` takes to its optimiser steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlvid.algorithms.score_table import RewardTable
from rlvid.config import AlgorithmConfig, GrpoConfig, Recipe, RolloutConfig
from rlvid.learners.admission import GroupUnavailableError, StaleGroupError
from rlvid.learners.batch_trainer import BatchTrainer
from rlvid.learners.chunk import Chunk
from rlvid.learners.data_loss import open_data_loss
from rlvid.learners.objective import open_objective
from rlvid.learners.parameter_check import ParameterMismatchError, check_same_parameters
from rlvid.learners.published import Published
from rlvid.learners.report import Usage
from rlvid.learners.trainee import Trainee, TraineeSettings
from rlvid.models.base import VideoModel
from rlvid.models.noise_levels import training_shift
from rlvid.models.policy import Policy
from rlvid.records import RolloutGroup, StepPlan, StepReport, WeightsManifest
from rlvid.weights import Bucket

__all__ = [
    "GroupUnavailableError",
    "ParameterMismatchError",
    "RlLearner",
    "RlSettings",
    "StaleGroupError",
    "rl_settings",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RlSettings:
    """The sections an RL learner reads."""

    trainee: TraineeSettings
    algorithm: AlgorithmConfig
    rollout: RolloutConfig
    grpo: GrpoConfig


def rl_settings(recipe: Recipe, policy: Policy) -> RlSettings:
    """Cut a recipe down to what the learner reads."""
    return RlSettings(
        trainee=TraineeSettings(
            policy=policy,
            model=recipe.model,
            learner=recipe.learner,
            weights=recipe.weights,
            seed=recipe.seed,
            total_steps=recipe.grpo.num_steps * recipe.algorithm.updates_per_batch,
            num_threads=recipe.cluster.threads_per_role,
        ),
        algorithm=recipe.algorithm,
        rollout=recipe.rollout,
        grpo=recipe.grpo,
    )


class RlLearner:
    """Trains a policy on scored groups."""

    def __init__(self, settings: RlSettings, model: VideoModel | None = None) -> None:
        """Open and wrap the policy; a collective of all ranks."""
        torch.set_num_threads(settings.trainee.num_threads)
        self._settings = settings
        self._shift = training_shift(settings.rollout.shift, settings.trainee.model)
        self.trainee = Trainee(settings.trainee, model, before_wrapping=self._choose_objective)
        self._objective.attach(self.trainee.engine)
        self._published = Published(settings.rollout.max_staleness)
        self._usage = Usage()
        self._batches = BatchTrainer(
            self.trainee,
            self._objective,
            self._published,
            settings.algorithm,
            data_loss=open_data_loss(settings.algorithm.data_loss, self.trainee, shift=self._shift),
            check_parameters_every=settings.trainee.learner.check_parameters_every,
            usage=self._usage,
        )

    @property
    def num_micro_batches(self) -> int:
        """Forward and backward passes done; a sign of life for other threads."""
        return self._batches.num_micro_batches

    def train(
        self,
        groups: Mapping[str, RolloutGroup],
        rewards: RewardTable,
        *,
        step: int,
    ) -> StepReport:
        """Train a batch in one chunk; see `train_chunk`."""
        report = self.train_chunk(
            groups,
            rewards,
            step=step,
            num_groups=len(rewards.group_ids),
            first_row=0,
            is_last=True,
        )
        assert report is not None, "the last chunk of a batch reports"
        return report

    def train_chunk(
        self,
        groups: Mapping[str, RolloutGroup],
        rewards: RewardTable,
        *,
        step: int,
        num_groups: int,
        first_row: int,
        is_last: bool,
        rows: Sequence[int] | None = None,
        plans: Sequence[StepPlan] | None = None,
    ) -> StepReport | None:
        """Add the gradient of some groups of a batch; the last chunk takes the updates.

        A collective of all ranks. The gradient is that of the whole batch, bit for bit, however it
        is cut. The trained rows of the batch are known only at its end, so losses are divided by
        the rows of the plan, and the sum is put right at the optimiser step (`ZeroEngine.step`).
        A chunk that fails leaves no gradient: the batch begins anew with a chunk at row 0.

        Args:
            groups: group id to group, the same ids on every rank. It may fetch lazily: a rank looks
                up only its share.
            rewards: of the groups of this chunk, the same on every rank. Credit must be local to
                groups (`rlvid.algorithms.streaming`) unless the chunk is the whole batch.
            num_groups: planned for the whole batch.
            first_row: place in the batch where this chunk begins, a multiple of the ranks.
            is_last: nothing of the batch follows.
            rows: place in the batch of each group of `rewards`, ascending; default first_row,
                first_row + 1, ... Rows left out belong to groups that will never come.
            plans: of all groups of the batch in order of rows. Needed where more than one chunk is
                to come, since step weights are normalised over them all.

        Returns:
            The report with the last chunk, else None.

        Raises:
            ValueError: `rewards` is not of these groups, or the chunk does not follow the last one.
            StaleGroupError: a group is older than `rollout.max_staleness`, or was sampled with
                weights that were not published under its version.
            GroupUnavailableError: a rank could not fetch a group.
            ParameterMismatchError: the ranks hold different parameters after the step.
            RuntimeError: of an algorithm on denoising steps, before the first update a fresh
                group's ratio is off 1 by more than `grpo.max_replay_drift_frac` of the clip range.
        """
        with self._usage.busy():
            try:
                rewards.check(groups, self._settings.rollout.group_size)
                if rows is None:
                    rows = range(first_row, first_row + len(rewards.group_ids))
                chunk = Chunk(groups, dict(zip(rows, rewards.group_ids, strict=True)))
                return self._batches.train_chunk(
                    chunk,
                    rewards,
                    step=step,
                    num_groups=num_groups,
                    first_row=first_row,
                    is_last=is_last,
                    plans=plans,
                )
            except Exception:
                self.abandon()
                raise

    def abandon(self) -> None:
        """Forget a batch that is not trained to its end, gradient and all; no collective."""
        self._batches.abandon()

    def publish(
        self, version: int, *, incarnation: int = 0, use_ema: bool = False
    ) -> tuple[WeightsManifest, dict[int, Bucket]]:
        """Return the manifest of a whole publish and this rank's buckets by index; a collective.

        From here on `version` is the newest: groups are admitted by their distance to it. It is the
        policy that samples, which for nft is the old one.

        Args:
            incarnation: starts of the learner in the run, for the actors' order of publishes.
        """
        self._batches.check_closed(f"publishing version {version}")
        source = None if use_ema else self._objective.published()
        with self._usage.busy():
            manifest, buckets = self.trainee.publish(
                version, incarnation=incarnation, use_ema=use_ema, source=source
            )
        is_average = use_ema or source is not None
        self._published.add(version, manifest.digest, is_average=is_average)
        return manifest, buckets

    @property
    def publish_metrics(self) -> dict[str, float]:
        """Seconds of the last publish, of the slowest rank."""
        return self.trainee.publish_metrics

    def release_buckets(self, version: int) -> None:
        """Let the next publish use the memory of this one again."""
        self.trainee.publisher.release(version)

    def export(self, folder: Path) -> None:
        """Write the policy, and its average beside it; a collective."""
        self.trainee.export(folder)

    def canary(self, text: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents [1, C, F, H, W], sigma [1] and the velocity there; a collective.

        It is that of the policy that samples.
        """
        with self._objective.speaking_as_published():
            return self.trainee.canary(text)

    def published_digest(self, version: int) -> str:
        """Return the manifest digest of a version that may still be consumed."""
        return self._published.digest_of(version)

    def restore_published(self, pairs: Iterable[tuple[int, str]]) -> None:
        """Admit groups of these publishes too, each a version and the digest of its manifest.

        For what an earlier start of the learner published: its groups are as good as they were,
        although this one may give another digest to the same version.
        """
        self._published.restore(pairs)

    def save(self, folder: Path) -> None:
        """Write weights, optimiser, averages, anchor, RNG and what was published; a collective."""
        self._batches.check_closed("writing a checkpoint")
        with self._usage.busy():
            self.check_parameters()
            self._objective.save(folder)
            self.trainee.save(folder, self._published.to_json())

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; right after opening."""
        with self._usage.busy():
            state = self.trainee.load(folder)
            self._objective.load(folder)
        self._published.load(state)

    def check_parameters(self) -> None:
        """Raise ParameterMismatchError unless all ranks hold the same parameters; a collective."""
        check_same_parameters(self.trainee.engine, self.trainee.base_digest)

    def _choose_objective(self, model: VideoModel) -> None:
        """Open what is trained on; the model is not wrapped yet, so copies can be taken."""
        settings = self._settings
        student = settings.trainee.policy.sampling
        self._objective = open_objective(
            model,
            algorithm=settings.algorithm,
            rollout=settings.rollout,
            learner=settings.trainee.learner,
            max_drift_frac=settings.grpo.max_replay_drift_frac,
            seed=settings.trainee.seed,
            shift=self._shift,
            levels=None if student is None else student.sigmas,
        )
