"""Training the denoising steps that rollouts took: GRPO and its family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvid.algorithms.base import Algorithm, GroupCredit, LossTerms
from rlvid.algorithms.batch import (
    all_forwards,
    assemble,
    forward_batches,
    needed_forwards,
    select_forward,
)
from rlvid.algorithms.tree_credit import has_tree_credit, num_trained, tree_credit
from rlvid.config import AlgorithmConfig, LearnerConfig, RolloutConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.prompt_condition import prompt_condition
from rlvid.flow.step_weights import update_step_weights
from rlvid.learners.objective_base import ObjectiveBase
from rlvid.learners.open_batch import MicroBatch, OpenBatch, planned_rollouts
from rlvid.learners.reference import Reference
from rlvid.models.base import VideoModel
from rlvid.records import LearnerBatch, RolloutGroup, StepPlan


class StepObjective(ObjectiveBase):
    """The loss of trained denoising steps, forwarded in the rollout's own batches."""

    def __init__(
        self,
        algorithm: Algorithm,
        model: VideoModel,
        *,
        config: AlgorithmConfig,
        rollout: RolloutConfig,
        learner: LearnerConfig,
        max_drift_frac: float,
    ) -> None:
        """Take a copy of the policy where the KL asks for one; `model.transformer` is bare here.

        Args:
            max_drift_frac: of the clip range, `grpo.max_replay_drift_frac`.
        """
        if rollout.step_plan.kind == "ode":
            raise ValueError(
                f"rollout.step_plan.kind: ode has no stochastic steps, and {config.use} trains "
                "nothing else: expected another kind, or an algorithm on final videos, such as nft"
            )
        self._algorithm = algorithm
        self._model = model
        self._config = config
        self._rollout = rollout
        self._learner = learner
        self._max_drift_frac = max_drift_frac
        is_dual = config.kl.kind == "dual"
        single = config.kl.model_copy(update={"kind": "reference"}) if is_dual else config.kl
        second = config.kl.model_copy(update={"kind": "moving_anchor" if is_dual else "none"})
        self._reference = Reference(model, single, mode=learner.mode)
        self._second = Reference(model, second, mode=learner.mode)

    @property
    def algorithm(self) -> Algorithm:
        return self._algorithm

    def open(self, plans: Sequence[StepPlan], *, step: int) -> OpenBatch:
        """Return the batch, its step weights normalised over all planned groups."""
        trained = planned_rollouts(self._config, self._rollout.group_size)
        return OpenBatch(
            step=step,
            num_groups=len(plans),
            plans=plans,
            step_weights=update_step_weights(self._config.step_weight, plans),
            nominal_rows=float(sum(self._planned_rows(plan, trained) for plan in plans)),
            keeps=self._config.updates_per_batch > 1,
        )

    def cut(
        self,
        batch: OpenBatch,
        row: int,
        group: RolloutGroup,
        credit: GroupCredit,
        *,
        is_fresh: bool,
    ) -> list[MicroBatch[LearnerBatch]]:
        """Cut a group into forwards: the rollout's own, or all its steps in one.

        Smaller ones only where memory asks for them.
        """
        advantage, trained = self._by_step(group, credit)
        assembled = assemble(
            group,
            advantage,
            trained,
            step_weights=batch.step_weights[row],
            pulled=credit.pulled,
            device=self._attached.device,
            is_on_policy=is_fresh,
        )
        return [
            MicroBatch(
                batch=select_forward(assembled, part),
                is_fresh=is_fresh,
                num_forwards=part.numel(),
            )
            for rows in self._together(assembled)
            for part in torch.split(rows, self._learner.micro_batch_rows)
        ]

    def terms(self, micro_batch: MicroBatch[LearnerBatch]) -> LossTerms:
        """Forward one micro-batch under the policy, and under those to which the KL pulls.

        These go first: between a forward and its backward stage 3 wants no other.
        """
        batch = micro_batch.batch
        reference_velocity = self._velocity_of(self._reference, batch)
        second: dict[str, Any] = {}
        if self._second.is_used:
            second["anchor_velocity"] = self._velocity_of(self._second, batch)
        return self._algorithm.loss(
            batch,
            self._velocity(batch),
            config=self._config,
            reference_velocity=reference_velocity,
            **second,
        )

    def kept(
        self, micro_batch: MicroBatch[LearnerBatch], terms: LossTerms
    ) -> MicroBatch[LearnerBatch]:
        """Return it with the ratio of the policy at the start of the update."""
        batch = replace(micro_batch.batch, proximal_log_ratio=terms.log_ratio)
        return replace(micro_batch, batch=batch, is_fresh=False)

    def check_start(self, batch: OpenBatch) -> None:
        """Refuse a batch whose replay is off: its clipping would act on numerical noise.

        Raises:
            RuntimeError: a fresh group's ratio is off 1 by more than a share of the clip range.
        """
        drift = self._attached.ranks.max([batch.drift])[0]
        batch.totals.replay_drift = drift
        clip_range = self._config.clip_range
        limit = self._max_drift_frac * clip_range
        if not drift <= limit:
            raise RuntimeError(
                f"learner: replay drift |ratio - 1| is {drift:.3g} before the update: expected at "
                f"most {limit:.3g} (grpo.max_replay_drift_frac of algorithm.clip_range "
                f"{clip_range:g}). Rollout and learner compute differently: give them the same "
                "model.dtype and attention backend, set rollout.inference to what leaves the "
                "trained steps exact, or raise the clip range"
            )

    def after_step(self, optimizer_step: int) -> None:
        """Renew a moving anchor where it is due."""
        for held in (self._reference, self._second):
            held.after_step(self._attached, optimizer_step)

    def save(self, folder: Path) -> None:
        """Write a moving anchor."""
        for held in (self._reference, self._second):
            held.save(folder, is_root=self._attached.ranks.rank == 0)

    def load(self, folder: Path) -> None:
        for held in (self._reference, self._second):
            held.load(folder)

    def _planned_rows(self, plan: StepPlan, trained: int) -> int:
        """Return the trained rows of a group of which `trained` rollouts are."""
        size, tree = self._rollout.group_size, self._config.tree
        return sum(min(trained, num_trained(plan, j, size, tree)) for j in plan.trained_steps)

    def _together(self, assembled: LearnerBatch) -> list[Tensor]:
        """Return the rows to forward together; of a pruned tree as few as the replay allows."""
        if self._learner.replay == "as_sampled":
            return forward_batches(assembled)
        is_pruned = self._config.tree.width != "all"
        return needed_forwards(assembled) if is_pruned else all_forwards(assembled)

    def _by_step(self, group: RolloutGroup, credit: GroupCredit) -> tuple[Tensor, Tensor]:
        """Return advantage and mask, [G] each, or [S, G] where the plan branches."""
        if not has_tree_credit(group.plan, self._config.tree):
            return credit.advantage, credit.trained
        rollouts = sorted(group.rollouts, key=lambda rollout: rollout.index)
        log_prob = torch.stack([rollout.behaviour_log_prob for rollout in rollouts], dim=1)
        return tree_credit(
            credit,
            group.plan,
            log_prob / rollouts[0].latents.numel(),
            tree=self._config.tree,
            advantage=self._config.advantage,
        )

    @torch.no_grad()
    def _velocity_of(self, held: Reference, batch: LearnerBatch) -> Tensor | None:
        """Return the velocity of a policy beside the one in training; None where it is not held."""
        if not held.is_used:
            return None
        with held.speaking():
            return self._velocity(batch)

    def _velocity(self, batch: LearnerBatch) -> Tensor:
        rows = batch.unique_rows
        latents = batch.latents[rows]
        condition, negative = prompt_condition(self._model, [batch.prompt], latents.shape[1:])
        return guided_velocity(
            self._model,
            latents,
            batch.sigma[rows],
            condition,
            negative,
            self._rollout.guidance_scale,
        )
