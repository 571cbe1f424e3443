"""The learner gang as the loop sees it: one that can be lost and started again."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvid.algorithms.score_table import RewardTable
from rlvid.bell import Bell
from rlvid.config import Recipe
from rlvid.launch.ledger import Ledger
from rlvid.launch.loop.ports import Pending, Published
from rlvid.launch.loop.schedule import Chunk
from rlvid.learners.admission import GroupUnavailableError
from rlvid.learners.group import LearnerGroup, LearnerLostError
from rlvid.models.policy import Policy
from rlvid.records import StepPlan, StepReport

logger = logging.getLogger(__name__)

STARTS = "learner_starts"
"""Counter of the ledger; numbers the incarnations of a run from 1."""


class Gang:
    """Owns the present LearnerGroup, and the budget of its losses."""

    def __init__(self, recipe: Recipe, policy: Policy, ledger: Ledger, bell: Bell) -> None:
        self._recipe = recipe
        self._policy = policy
        self._ledger = ledger
        self._bell = bell
        self._losses: deque[float] = deque()
        self.plans_of: Callable[[int], Sequence[StepPlan]] = lambda step: ()
        """Step to the plans of all its groups, which its loss weights are normalised over."""
        self.receivers: Callable[[], Sequence[str]] = tuple
        """Names of the rollout actors there are now, for a publish by broadcast."""
        self.canary_text = ""
        """What canaries are asked with; none is asked while it is empty."""
        self.wants_canary = False
        """Ask for one with the next publish, whatever its version."""
        self.start()

    def start(self) -> None:
        """Start the ranks; they load while the caller goes on."""
        self.incarnation = self._ledger.count(STARTS)
        self.group = LearnerGroup.start_rl(self._recipe, self._policy, bell=self._bell)
        self.group.delivery.receivers = lambda: self.receivers()
        self._canary: tuple[tuple[int, int], Pending[Any]] | None = None

    def open(self, checkpoint: Path | None, *, version: int) -> None:
        """Wait for the ranks and bring them to where training goes on.

        Args:
            checkpoint: a verified one, or None to begin with the policy as it is.
            version: number of optimiser steps done there.
        """
        self.group.wait_ready(self._recipe.cluster.start_deadline_s)
        if checkpoint is not None:
            self.group.load_checkpoint(checkpoint)
        oldest = max(version - self._recipe.rollout.max_staleness, 0)
        self.group.begin_restore_published(self._ledger.publishes(oldest)).result()

    def lost(self, error: LearnerLostError | GroupUnavailableError) -> None:
        """End what is left of the gang and start another.

        Raises:
            LearnerLostError: it was lost more often than `learner.crash_budget` allows.
        """
        now = time.monotonic()
        config = self._recipe.learner
        self._losses.append(now)
        while now - self._losses[0] > config.crash_window_s:
            self._losses.popleft()
        self.group.shutdown()
        if len(self._losses) > config.crash_budget:
            raise LearnerLostError(
                f"learner: lost {len(self._losses)} times within {config.crash_window_s:g} s, "
                f"learner.crash_budget is {config.crash_budget}; the last time: {error}"
            ) from error
        logger.warning("the learner was lost, starting it again: %s", error)
        self.start()

    def shutdown(self) -> None:
        self.group.shutdown()

    # The port of the loop

    def begin_chunk(
        self, groups: Mapping[str, Any], rewards: RewardTable, chunk: Chunk
    ) -> Pending[StepReport | None]:
        return self.group.begin_chunk(
            groups,
            rewards,
            step=chunk.step,
            num_groups=chunk.batch_groups,
            first_row=chunk.first,
            rows=[chunk.first + chunk.group_ids.index(group_id) for group_id in groups],
            plans=self.plans_of(chunk.step),
            is_last=chunk.is_last,
        )

    def begin_publish(self, version: int) -> Pending[Published]:
        published = self.group.begin_publish(version, incarnation=self.incarnation)
        every = self._recipe.weights.canary_every
        is_due = self.wants_canary or bool(every and version % every == 0)
        if self.canary_text and is_due:
            # Right behind the publish: the ranks answer it with the very weights they published.
            answer = self.group.begin_canary(self.canary_text)
            self._canary, self.wants_canary = ((self.incarnation, version), answer), False
        return published

    def take_canary(self) -> tuple[tuple[int, int], tuple[Any, Any, Any]] | None:
        """Return once the (incarnation, version) of a canary, its input and the velocity there."""
        if self._canary is None:
            return None
        order, answer = self._canary
        try:
            if not answer.poll():
                return None
        except LearnerLostError:  # the loop hears of it from its own calls
            self._canary = None
            return None
        self._canary = None
        return order, answer.result()
