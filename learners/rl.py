"""One rank of the RL learner: credit, admission, gradient, step. A plain class.

Every rank is given every reward and works out the same credit; each then trains its share of the
groups. Letters: P groups of a batch, G rollouts in a group, S trained steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rlvid.algorithms import ALGORITHMS
from rlvid.algorithms.base import Algorithm, Credit, LossTerms
from rlvid.algorithms.batch import assemble, forward_batches, select_forward
from rlvid.algorithms.score_table import RewardTable
from rlvid.config import AlgorithmConfig, GrpoConfig, Recipe, RolloutConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.step_weights import update_step_weights
from rlvid.learners.admission import GroupFacts, StaleGroupError, check_groups, facts_of
from rlvid.learners.reference import Reference
from rlvid.learners.report import UpdateTotals, advantage_metrics, memory_metrics
from rlvid.learners.trainee import Trainee, TraineeSettings
from rlvid.models.base import VideoModel
from rlvid.models.policy import Policy
from rlvid.plugins import resolve
from rlvid.records import LearnerBatch, RolloutGroup, StepReport, WeightsManifest
from rlvid.weights import Bucket

__all__ = ["RlLearner", "RlSettings", "StaleGroupError", "rl_settings"]


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
            seed=recipe.seed,
            total_steps=recipe.grpo.num_steps * recipe.algorithm.updates_per_batch,
            num_threads=recipe.cluster.threads_per_role,
        ),
        algorithm=recipe.algorithm,
        rollout=recipe.rollout,
        grpo=recipe.grpo,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _MicroBatch:
    """One forward and the rows it serves."""

    batch: LearnerBatch
    is_fresh: bool
    """Sampled by the version held now: its ratio must be 1 before the first update."""


class RlLearner:
    """Trains a policy on scored groups."""

    def __init__(self, settings: RlSettings, model: VideoModel | None = None) -> None:
        """Open and wrap the policy; a collective of all ranks."""
        torch.set_num_threads(settings.trainee.num_threads)
        self._settings = settings
        algorithm = resolve(settings.algorithm.use, ALGORITHMS, where="algorithm.use")
        self._algorithm = cast(Algorithm, cast(Any, algorithm)())
        self.trainee = Trainee(settings.trainee, model, before_wrapping=self._take_reference)
        self._model = self.trainee.model
        self._published: dict[int, str] = {}
        self._version = -1
        self._is_replayable = True

    def train(
        self,
        groups: Mapping[str, RolloutGroup],
        rewards: RewardTable,
        *,
        step: int,
    ) -> StepReport:
        """Take the updates of one batch; a collective of all ranks.

        Args:
            groups: group id to group, the same ids on every rank. It may fetch lazily: a rank looks
                up only its share.
            rewards: of the whole batch, the same on every rank.

        Raises:
            ValueError: `rewards` is not of these groups.
            StaleGroupError: a group is older than `rollout.max_staleness`, or was sampled with
                weights that were not published under its version.
            RuntimeError: before the first update a fresh group's ratio is off 1 by more than
                `grpo.max_replay_drift_frac` of the clip range.
        """
        started = time.perf_counter()
        rewards.check(groups, self._settings.rollout.group_size)
        ids = rewards.group_ids
        credit = self._algorithm.credit(
            rewards.values, rewards.weights, self._settings.algorithm.advantage
        )
        dropped = {row for row, _ in credit.dropped}
        kept = [row for row in range(len(ids)) if row not in dropped and credit.trained[row].any()]
        report = StepReport(
            step=step,
            metrics={},
            trained_group_ids=tuple(ids[row] for row in kept),
            dropped_group_ids=tuple(ids[row] for row in range(len(ids)) if row not in kept),
        )
        if not kept:
            return replace(report, metrics={"learner/rows/count": 0.0})
        micro_batches = self._prepare(groups, ids, kept, credit)
        metrics = self._update(micro_batches)
        metrics |= advantage_metrics(credit, self._settings.algorithm.advantage.clip)
        metrics |= memory_metrics(self.trainee.engine.device)
        metrics["time/learner_update/seconds"] = time.perf_counter() - started
        return replace(report, metrics=metrics)

    def publish(
        self, version: int, *, use_ema: bool = False
    ) -> tuple[WeightsManifest, list[Bucket]] | None:
        """Return manifest and buckets on rank 0, None elsewhere; a collective.

        From here on `version` is the newest: groups are admitted by their distance to it.
        """
        published = self.trainee.publish(version, use_ema=use_ema)
        digests = self.trainee.engine.ranks.gather_json(published[0].digest if published else None)
        self._published[version] = digests[0]
        self._version = version
        self._is_replayable = not use_ema
        oldest = version - self._settings.rollout.max_staleness
        self._published = {v: d for v, d in self._published.items() if v >= oldest}
        return published

    def published_digest(self, version: int) -> str:
        """Return the manifest digest of a version that may still be consumed."""
        return self._published[version]

    def save(self, folder: Path) -> None:
        """Write weights, optimiser, average, anchor, RNG and what was published; a collective."""
        self._reference.save(folder, is_root=self.trainee.rank == 0)
        state = {
            "version": self._version,
            "published": [[version, digest] for version, digest in self._published.items()],
        }
        self.trainee.save(folder, state)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; right after opening."""
        state = self.trainee.load(folder)
        self._reference.load(folder)
        self._version = int(state["version"])
        self._published = {int(version): str(digest) for version, digest in state["published"]}

    def _take_reference(self, model: VideoModel) -> None:
        self._reference = Reference(
            model, self._settings.algorithm.kl, mode=self._settings.trainee.learner.mode
        )

    def _prepare(
        self,
        groups: Mapping[str, RolloutGroup],
        ids: Sequence[str],
        kept: Sequence[int],
        credit: Credit,
    ) -> list[_MicroBatch]:
        """Fetch this rank's share, admit the whole batch, and cut the share into forwards."""
        ranks = self.trainee.engine.ranks
        share = {row: groups[ids[row]] for row in kept[ranks.rank :: ranks.world_size]}
        if not share:
            share = {kept[0]: groups[ids[kept[0]]]}
            is_spare = True
        else:
            is_spare = False
        facts = [] if is_spare else [facts_of(row, group) for row, group in share.items()]
        everybody = sorted(
            (GroupFacts.from_json(tree) for part in ranks.gather_json([f.to_json() for f in facts])
             for tree in part),
            key=lambda fact: fact.row,
        )  # fmt: skip
        check_groups(
            everybody,
            expected_ids={row: ids[row] for row in kept},
            version=self._version,
            published=self._published,
            max_staleness=self._settings.rollout.max_staleness,
        )
        weights = dict(
            zip(
                (fact.row for fact in everybody),
                update_step_weights(
                    self._settings.algorithm.step_weight, [fact.plan for fact in everybody]
                ),
                strict=True,
            )
        )
        micro_batches = []
        for row, group in share.items():
            trained = torch.zeros_like(credit.trained[row]) if is_spare else credit.trained[row]
            batch = assemble(
                group,
                credit.advantage[row],
                trained,
                step_weights=weights[row],
                device=self.trainee.engine.device,
            )
            is_fresh = (
                self._is_replayable and group.policy_version == self._version and not is_spare
            )
            micro_batches += [
                _MicroBatch(batch=part, is_fresh=is_fresh) for part in self._forwards(batch)
            ]
        return self._pad(micro_batches)

    def _forwards(self, batch: LearnerBatch) -> list[LearnerBatch]:
        """Cut a group into the rollout's own forwards, smaller only where memory asks for it."""
        limit = self._settings.trainee.learner.micro_batch_rows
        return [
            select_forward(batch, rows)
            for together in forward_batches(batch)
            for rows in torch.split(together, limit)
        ]

    def _pad(self, micro_batches: list[_MicroBatch]) -> list[_MicroBatch]:
        """Repeat a forward with no trained row until all ranks have equally many.

        ZeRO 2 and 3 reduce in every backward; a rank with fewer of them would leave the others
        waiting. The padding goes first, so that every step ends with a forward that counts.
        """
        longest = int(self.trainee.engine.ranks.max([float(len(micro_batches))])[0])
        first = micro_batches[0].batch
        empty = replace(first, trained=torch.zeros_like(first.trained))
        padding = _MicroBatch(batch=empty, is_fresh=False)
        return [padding] * (longest - len(micro_batches)) + micro_batches

    def _update(self, micro_batches: Sequence[_MicroBatch]) -> dict[str, float]:
        """Take `updates_per_batch` optimiser steps and return their metrics."""
        trainee, ranks = self.trainee, self.trainee.engine.ranks
        rows = sum(int(micro_batch.batch.trained.sum()) for micro_batch in micro_batches)
        total_rows = ranks.sum([float(rows)])[0]
        totals = UpdateTotals(total_rows)
        for update in range(self._settings.algorithm.updates_per_batch):
            drift = 0.0
            for index, micro_batch in enumerate(micro_batches):
                terms = self._terms(micro_batch.batch)
                is_last = index == len(micro_batches) - 1
                trainee.engine.backward(terms.loss_sum / total_rows, is_last=is_last)
                totals.add(terms)
                if micro_batch.is_fresh and terms.num_rows:
                    drift = max(drift, float(terms.maxima["ratio_deviation_max"]))
            if update == 0:
                self._check_drift(ranks.max([drift])[0], totals)
            totals.learning_rate = trainee.next_learning_rate()
            totals.grad_norm = trainee.step()
            self._reference.after_step(trainee.engine, trainee.optimizer_steps - 1)
        return totals.metrics(ranks)

    def _terms(self, batch: LearnerBatch) -> LossTerms:
        """Forward one micro-batch under the policy, and under the reference where the KL pulls.

        The reference goes first: between a forward and its backward stage 3 wants no other.
        """
        reference_velocity = None
        if self._reference.is_used:
            with torch.no_grad(), self._reference.speaking():
                reference_velocity = self._velocity(batch)
        return self._algorithm.loss(
            batch,
            self._velocity(batch),
            config=self._settings.algorithm,
            reference_velocity=reference_velocity,
        )

    def _velocity(self, batch: LearnerBatch) -> Tensor:
        rows = batch.unique_rows
        return guided_velocity(
            self._model,
            batch.latents[rows],
            batch.sigma[rows],
            self._model.encode_prompts([batch.prompt.model_text]),
            self._model.encode_prompts([""]),
            self._settings.rollout.guidance_scale,
        )

    def _check_drift(self, drift: float, totals: UpdateTotals) -> None:
        """Refuse a batch whose replay is off: its clipping would act on numerical noise."""
        totals.replay_drift = drift
        clip_range = self._settings.algorithm.clip_range
        limit = self._settings.grpo.max_replay_drift_frac * clip_range
        if not drift <= limit:
            raise RuntimeError(
                f"learner: replay drift |ratio - 1| is {drift:.3g} before the update: expected at "
                f"most {limit:.3g} (grpo.max_replay_drift_frac of algorithm.clip_range "
                f"{clip_range:g}). Rollout and learner compute differently: give them the same "
                "model.dtype and attention backend, or raise the clip range"
            )
