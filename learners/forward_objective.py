"""Training final videos that are noised again: nft, awm, dpo and their kind.

There is no replay: how a video was sampled plays no part, so there is no drift to check, and every
velocity is the model's own, without guidance (DiffusionNFT, arXiv:2509.16117, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rlvid.algorithms.base import ForwardAlgorithm, GroupCredit, LossTerms
from rlvid.algorithms.forward_batch import ForwardBatch, assemble_forward, split_units
from rlvid.config import AlgorithmConfig, KlConfig, LearnerConfig, RolloutConfig
from rlvid.flow.prompt_condition import prompt_condition
from rlvid.flow.sigmas import Shift
from rlvid.learners.objective_base import ObjectiveBase
from rlvid.learners.old_policy import OldPolicy
from rlvid.learners.open_batch import MicroBatch, OpenBatch, planned_rollouts
from rlvid.learners.publish import WeightsSource
from rlvid.learners.reference import Reference
from rlvid.learners.zero_engine import ZeroEngine
from rlvid.models.base import VideoModel
from rlvid.records import RolloutGroup, StepPlan


class ForwardObjective(ObjectiveBase):
    """The loss of noised final videos, and the policies it compares with."""

    def __init__(
        self,
        algorithm: ForwardAlgorithm,
        model: VideoModel,
        *,
        config: AlgorithmConfig,
        rollout: RolloutConfig,
        learner: LearnerConfig,
        seed: int,
        shift: Shift,
        levels: Sequence[float] | None = None,
    ) -> None:
        """Take copies of the policy where the algorithm asks for them; it is bare here.

        Args:
            shift: of the sampler's noise levels.
            levels: those of a distilled student, which is trained at no others.
            seed: the recipe's; noise follows from it.
        """
        self._algorithm = algorithm
        self._model = model
        self._config = config
        self._rollout = rollout
        self._learner = learner
        self._seed = seed
        self._shift = shift
        self._levels = levels
        others = algorithm.other_policies(config)
        kind = KlConfig(kind="reference" if others.reference else "none")
        self._reference = Reference(model, kind, mode=learner.mode)
        self._old = OldPolicy(model, others.old, learner) if others.old is not None else None
        self._samples_with_old = others.samples_with_old
        if others.samples_with_old and self._old is None:
            raise ValueError(
                f"algorithm.use: {config.use} samples with an old policy that it does not hold: "
                "expected other_policies() to name its decay, got old=None"
            )

    @property
    def algorithm(self) -> ForwardAlgorithm:
        return self._algorithm

    def attach(self, engine: ZeroEngine) -> None:
        """Take the engine; the old policy starts from it. A collective."""
        super().attach(engine)
        if self._old is not None:
            self._old.attach(engine)

    def open(self, plans: Sequence[StepPlan], *, step: int) -> OpenBatch:
        """Return the batch; of its plans only their number counts."""
        rows = planned_rollouts(self._config, self._rollout.group_size)
        return OpenBatch(
            step=step,
            num_groups=len(plans),
            plans=plans,
            step_weights=(),
            nominal_rows=float(len(plans) * rows * self._config.forward.num_noise_levels),
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
    ) -> list[MicroBatch[ForwardBatch]]:
        """Noise the videos of a group and cut them into forwards, units whole.

        None is marked fresh: there is no replay that could be off.
        """
        units = self._algorithm.units(credit.advantage, credit.trained, self._config)
        if not units:
            raise ValueError(
                f"learner: group {group.group_id}: {self._config.use} found nothing to train in a "
                "group that its credit() kept: expected at least one unit. Drop it in credit()"
            )
        assembled = assemble_forward(
            group,
            credit.advantage,
            units,
            self._config.forward,
            seed=self._seed,
            shift=self._shift,
            levels=self._levels,
            pulled=credit.pulled,
            device=self._attached.device,
        )
        return [
            MicroBatch(batch=part, is_fresh=False, num_forwards=part.sigma.numel())
            for part in split_units(assembled, self._learner.micro_batch_rows)
        ]

    def terms(self, micro_batch: MicroBatch[ForwardBatch]) -> LossTerms:
        """Forward one micro-batch under the others and then under the policy.

        The policy goes last: between a forward and its backward stage 3 wants no other.
        """
        batch = micro_batch.batch
        old_velocity = reference_velocity = None
        with torch.no_grad():
            if self._old is not None:
                with self._old.speaking():
                    old_velocity = self._velocity(batch)
            if self._reference.is_used:
                with self._reference.speaking():
                    reference_velocity = self._velocity(batch)
        return self._algorithm.loss(
            batch,
            self._velocity(batch),
            config=self._config,
            old_velocity=old_velocity,
            reference_velocity=reference_velocity,
        )

    def kept(
        self, micro_batch: MicroBatch[ForwardBatch], terms: LossTerms
    ) -> MicroBatch[ForwardBatch]:
        """Return it with the log-probabilities of the policy at the start of the update."""
        batch = replace(micro_batch.batch, start_log_prob=terms.log_prob)
        return replace(micro_batch, batch=batch)

    def after_batch(self, step: int) -> None:
        """Move the old policy."""
        if self._old is not None:
            self._old.after_batch(step)

    def published(self) -> WeightsSource | None:
        """Return the old policy where rollouts are its own, else None for the live parameters."""
        if self._old is None or not self._samples_with_old:
            return None
        return self._old.average

    def speaking_as_published(self) -> AbstractContextManager[None]:
        """Within the block the model is the policy that actors sample with."""
        if self._old is None or not self._samples_with_old:
            return nullcontext()
        return self._old.speaking()

    def save(self, folder: Path) -> None:
        """Write the old policy; the reference is read from the policy's files again."""
        if self._old is not None:
            self._old.save(folder)

    def load(self, folder: Path) -> None:
        if self._old is not None:
            self._old.load(folder)

    def _velocity(self, batch: ForwardBatch) -> Tensor:
        """[N, C, F, H, W] of whoever speaks, for the prompt, without guidance."""
        shape = batch.latents.shape[1:]
        condition, _ = prompt_condition(self._model, [batch.prompt], shape)
        rows = batch.sigma.numel()
        return self._model.velocity(batch.latents, batch.sigma, condition.expand(rows))
