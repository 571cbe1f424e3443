"""One rank of the RL learner: credit, admission, gradient, step. A plain class.

Every rank is given every reward and works out the same credit; each then trains its share of the
groups. A batch comes in one or more chunks (`open_batch`). Letters: P groups of a batch, G rollouts
in a group, S trained steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvid.algorithms.base import LossTerms
from rlvid.algorithms.score_table import RewardTable
from rlvid.config import AlgorithmConfig, GrpoConfig, Recipe, RolloutConfig
from rlvid.learners.admission import GroupUnavailableError, StaleGroupError
from rlvid.learners.chunk import Chunk, ChunkCutter
from rlvid.learners.credit import credit_chunk
from rlvid.learners.data_loss import DataLoss, open_data_loss
from rlvid.learners.objective import open_objective
from rlvid.learners.open_batch import MicroBatch, OpenBatch, joined
from rlvid.learners.parameter_check import ParameterMismatchError, check_same_parameters
from rlvid.learners.published import Published
from rlvid.learners.ranks import Ranks
from rlvid.learners.report import Usage, advantage_metrics, memory_metrics
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
        self._data_loss: DataLoss | None = open_data_loss(
            settings.algorithm.data_loss,
            self.trainee,
            shift=self._shift,
        )
        self._published = Published(settings.rollout.max_staleness)
        self._cutter = ChunkCutter(self._ranks, self._objective, self._published)
        self._open: OpenBatch | None = None
        self._usage = Usage()
        self.num_micro_batches = 0
        """Forward and backward passes done; a sign of life for other threads."""

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
                if first_row == 0:
                    self._begin(chunk, step, num_groups, is_last=is_last, plans=plans)
                batch = self._opened(step, num_groups)
                batch.check_place(first_row, tuple(chunk.ids), self._ranks.data_parallel)
                self._add(batch, chunk, rewards, is_last=is_last)
                batch.next_row = max([first_row + 1, *(row + 1 for row in chunk.ids)])
                return self._finish(batch) if is_last else None
            except Exception:
                self.abandon()
                raise

    def abandon(self) -> None:
        """Forget a batch that is not trained to its end, gradient and all; no collective."""
        self._open = None
        self.trainee.engine.discard()

    def publish(
        self, version: int, *, incarnation: int = 0, use_ema: bool = False
    ) -> tuple[WeightsManifest, dict[int, Bucket]]:
        """Return the manifest of a whole publish and this rank's buckets by index; a collective.

        From here on `version` is the newest: groups are admitted by their distance to it. It is the
        policy that samples, which for nft is the old one.

        Args:
            incarnation: starts of the learner in the run, for the actors' order of publishes.
        """
        self._check_closed(f"publishing version {version}")
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
        self._check_closed("writing a checkpoint")
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
        self._objective = open_objective(
            model,
            algorithm=settings.algorithm,
            rollout=settings.rollout,
            learner=settings.trainee.learner,
            max_drift_frac=settings.grpo.max_replay_drift_frac,
            seed=settings.trainee.seed,
            shift=self._shift,
        )

    @property
    def _ranks(self) -> Ranks:
        return self.trainee.engine.ranks

    def _check_closed(self, doing: str) -> None:
        if self._open is not None:
            raise ValueError(
                f"learner: {doing}: step {self._open.step} has chunks and no optimiser step yet; "
                "hand in its last chunk, or abandon it"
            )

    def _begin(
        self,
        chunk: Chunk,
        step: int,
        num_groups: int,
        *,
        is_last: bool,
        plans: Sequence[StepPlan] | None,
    ) -> None:
        """Open the batch that a chunk at row 0 starts."""
        self._check_closed(f"step {step}")
        if plans is None:
            if not is_last or len(chunk.ids) != num_groups:
                raise ValueError(
                    f"learner: step {step}: a batch in several chunks needs the plans of all its "
                    f"{num_groups} groups from the first chunk on, got none"
                )
            _, facts = self._cutter.fetch(chunk, chunk.ids)
            plans = [fact.plan for fact in facts]
        if len(plans) != num_groups:
            raise ValueError(
                f"learner: step {step}: expected the plans of {num_groups} groups, got {len(plans)}"
            )
        self._open = self._objective.open(plans, step=step)

    def _opened(self, step: int, num_groups: int) -> OpenBatch:
        if self._open is None or (self._open.step, self._open.num_groups) != (step, num_groups):
            held = "none" if self._open is None else f"step {self._open.step}"
            raise ValueError(
                f"learner: chunk of step {step} with {num_groups} groups: expected it to belong to "
                f"the batch that is open, which is {held}; a batch begins with a chunk at row 0, "
                "and begins again after a chunk that failed"
            )
        return self._open

    def _add(self, batch: OpenBatch, chunk: Chunk, rewards: RewardTable, *, is_last: bool) -> None:
        """Credit the groups of a chunk, admit them, and add their gradient."""
        batch.num_chunks += 1
        kept = credit_chunk(
            batch, chunk, rewards, self._objective.algorithm, self._settings.algorithm
        )
        micro_batches = self._cutter.micro_batches(batch, chunk, kept)
        if is_last and not micro_batches and batch.spare is not None:
            micro_batches = [batch.spare]
        self._first_update(batch, micro_batches, is_last=is_last)

    def _first_update(
        self, batch: OpenBatch, micro_batches: Sequence[MicroBatch[Any]], *, is_last: bool
    ) -> None:
        """Add the gradient of a chunk; refuse one whose replay is off."""
        for index, micro_batch in enumerate(micro_batches):
            ends = is_last and index == len(micro_batches) - 1 and self._data_loss is None
            terms = self._backward(batch, micro_batch, is_last=ends)
            batch.num_rows += terms.num_rows
            if micro_batch.is_fresh and terms.num_rows:
                batch.drift = max(batch.drift, float(terms.maxima["ratio_deviation_max"]))
            if batch.keeps:
                batch.micro_batches.append(self._objective.kept(micro_batch, terms))
        self._objective.check_start(batch)

    def _backward(
        self, batch: OpenBatch, micro_batch: MicroBatch[Any], *, is_last: bool
    ) -> LossTerms:
        """Add the gradient of one forward, as a share of the batch's planned rows."""
        started = time.perf_counter()
        terms = self._objective.terms(micro_batch)
        self.trainee.engine.backward(terms.loss_sum / batch.nominal_rows, is_last=is_last)
        batch.totals.add(
            terms,
            forward_rows=micro_batch.num_forwards,
            seconds=time.perf_counter() - started,
        )
        self.num_micro_batches += 1
        return terms

    def _finish(self, batch: OpenBatch) -> StepReport:
        """Take the updates of a batch whose gradient is complete."""
        self._open = None
        report = StepReport(
            step=batch.step,
            metrics={},
            trained_group_ids=tuple(batch.trained_ids),
            dropped_group_ids=tuple(batch.dropped_ids),
        )
        if not batch.trained_ids:
            return replace(report, metrics={"learner/rows/count": 0.0, **self._usage.take()})
        update_rows = self._ranks.sum([float(batch.num_rows)])[0]
        if not update_rows:
            # Groups with a spread may have none among the nodes of a tree.
            self.trainee.engine.discard()
            return replace(
                report,
                metrics={"learner/rows/count": 0.0, **self._usage.take()},
                trained_group_ids=(),
                dropped_group_ids=(*batch.dropped_ids, *batch.trained_ids),
            )
        divisor = update_rows / batch.nominal_rows
        self._step(batch, divisor)
        for _ in range(1, self._settings.algorithm.updates_per_batch):
            for index, micro_batch in enumerate(batch.micro_batches):
                is_last = index == len(batch.micro_batches) - 1 and self._data_loss is None
                self._backward(batch, micro_batch, is_last=is_last)
            self._step(batch, divisor)
        self._objective.after_batch(batch.step)
        metrics = batch.totals.metrics(self._ranks, update_rows=update_rows)
        credit, clip = joined(batch.credits), self._settings.algorithm.advantage.clip
        metrics |= advantage_metrics(credit, clip) | memory_metrics(self.trainee.engine.device)
        metrics["learner/chunks/count"] = float(batch.num_chunks)
        usage = self._usage.take()
        metrics["time/learner_update/seconds"] = usage["time/learner_busy/seconds"]
        return replace(report, metrics=metrics | usage)

    def _step(self, batch: OpenBatch, divisor: float) -> None:
        """Take one optimiser step on the gradient that is there and that of the clips beside."""
        trainee = self.trainee
        if self._data_loss is not None:
            batch.totals.data_loss = self._data_loss.add_gradient(divisor)
        batch.totals.learning_rate = trainee.next_learning_rate()
        batch.totals.grad_norm = trainee.step(divisor=divisor)
        self._objective.after_step(trainee.optimizer_steps - 1)
        every = self._settings.trainee.learner.check_parameters_every
        if every and trainee.optimizer_steps % every == 0:
            self.check_parameters()
