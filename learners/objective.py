"""What a batch of groups is trained on: the seam between the learner and the kinds of algorithm.

`StepObjective` (learners.step_objective) trains the denoising steps a rollout took, for GRPO and
its family. `ForwardObjective` (learners.forward_objective) trains final videos that are noised
again, for nft, awm and dpo. `ReflObjective` (learners.refl_objective) takes their last denoising
steps again, and follows the gradient of a reward. Credit, admission, chunks, ranks and the
optimiser step are the learner's, and the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from rlvid.algorithms.base import Algorithm, ForwardAlgorithm, GroupCredit, LossTerms
from rlvid.algorithms.opening import open_algorithm
from rlvid.algorithms.refl import Refl
from rlvid.config import AlgorithmConfig, LearnerConfig, RolloutConfig
from rlvid.flow.sigmas import Shift
from rlvid.learners.forward_objective import ForwardObjective
from rlvid.learners.open_batch import MicroBatch, OpenBatch
from rlvid.learners.publish import WeightsSource
from rlvid.learners.refl_objective import ReflObjective
from rlvid.learners.step_objective import StepObjective
from rlvid.learners.zero_engine import ZeroEngine
from rlvid.models.base import VideoModel
from rlvid.records import RolloutGroup, StepPlan


class Objective(Protocol):
    """Cuts groups into forwards, and says what the loss of one is."""

    @property
    def algorithm(self) -> Algorithm | ForwardAlgorithm | Refl: ...

    def attach(self, engine: ZeroEngine) -> None:
        """Take what follows the trained parameters; once, when they are wrapped. A collective."""

    def open(self, plans: Sequence[StepPlan], *, step: int) -> OpenBatch:
        """Return the batch of `plans`, of which nothing is trained yet."""

    def cut(
        self,
        batch: OpenBatch,
        row: int,
        group: RolloutGroup,
        credit: GroupCredit,
        *,
        is_fresh: bool,
    ) -> list[MicroBatch[Any]]:
        """Return the forwards of a group, at least one.

        Args:
            is_fresh: sampled with the weights held now.
        """

    def terms(self, micro_batch: MicroBatch[Any]) -> LossTerms:
        """Forward under the policy, and before it under those it is compared with."""

    def kept(self, micro_batch: MicroBatch[Any], terms: LossTerms) -> MicroBatch[Any]:
        """Return it for later updates on the same rows."""

    def check_start(self, batch: OpenBatch) -> None:
        """Refuse a chunk after its first update's gradient, before any step. A collective."""

    def after_step(self, optimizer_step: int) -> None:
        """Follow optimiser step `optimizer_step` (0-based); a collective where it does anything."""

    def after_batch(self, step: int) -> None:
        """Follow batch `step` (0-based), all its updates taken; likewise a collective."""

    def published(self) -> WeightsSource | None:
        """Return what actors sample with; None for the live parameters."""

    def speaking_as_published(self) -> AbstractContextManager[None]:
        """Within the block the model is the policy that actors sample with."""

    def save(self, folder: Path) -> None:
        """Write what a resume needs beside the trainee's state; every rank calls it."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; a collective."""


def open_objective(
    model: VideoModel,
    *,
    algorithm: AlgorithmConfig,
    rollout: RolloutConfig,
    learner: LearnerConfig,
    max_drift_frac: float,
    seed: int,
    shift: Shift,
    levels: Sequence[float] | None = None,
) -> Objective:
    """Return what the recipe's algorithm trains; `model` is ready for training and not wrapped.

    Args:
        max_drift_frac: `grpo.max_replay_drift_frac`.
        seed: the recipe's.
        shift: of the sampler's noise levels.
        levels: those of a distilled student; None of any other policy.
    """
    found = open_algorithm(algorithm)
    if isinstance(found, Refl):
        return ReflObjective(
            found, model, config=algorithm, rollout=rollout, learner=learner, seed=seed
        )
    if isinstance(found, ForwardAlgorithm):
        return ForwardObjective(
            found,
            model,
            config=algorithm,
            rollout=rollout,
            learner=learner,
            seed=seed,
            shift=shift,
            levels=levels,
        )
    return StepObjective(
        found,
        model,
        config=algorithm,
        rollout=rollout,
        learner=learner,
        max_drift_frac=max_drift_frac,
    )
