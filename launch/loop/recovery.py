"""From a checkpoint to a loop that goes on: after a stopped run, and after a lost learner.

Rollouts that actors and scorers work on are kept; groups that were learned from since the
checkpoint, or were waiting, come back from the disk; what is neither is sampled again from the same
seeds. So a lost learner costs the optimiser steps since the checkpoint and no rollout.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from rlvid.launch.group_keeper import Keeper
from rlvid.launch.group_store import StoredGroupError
from rlvid.launch.groups import ScoredGroup
from rlvid.launch.ledger import Ledger
from rlvid.launch.loop.line import GroupLine, Issue
from rlvid.learners.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What is needed to find groups again."""

    keeper: Keeper | None
    """None where the recipe keeps no groups on disk."""
    ledger: Ledger
    line: GroupLine
    deadline_s: float

    def rewind(self, latest: Checkpoint | None) -> int:
        """Bring ledger and line to where the checkpoint's next step begins; return that step."""
        step = latest.step if latest else 0
        kept = set(self.line.ready_ids()) | self._stored(latest, step)
        self.line.forget_evaluations()
        self.ledger.rewind(step, kept=kept, in_flight=set(self.line.in_flight()))
        return step

    def restore(self, issue: Issue) -> ScoredGroup | None:
        """Return a group from the disk; None when it is damaged, and will be sampled again."""
        if self.keeper is None:
            return None
        group_id = issue.task.group_id
        try:
            loaded = self.keeper.load(group_id, self.deadline_s)
        except StoredGroupError as error:
            logger.warning("will sample a damaged group again group=%s error=%s", group_id, error)
            return None
        return ScoredGroup(
            task=issue.task, group=loaded.group, summary=loaded.summary, scores=loaded.scores
        )

    def _stored(self, latest: Checkpoint | None, step: int) -> set[str]:
        """Return the ids of the groups of `step` and later that are on the disk."""
        if self.keeper is None:
            return set()
        self.keeper.flush(self.deadline_s)
        if latest is not None:
            self.keeper.restore_from(latest.path, self.deadline_s)
        stored = self.keeper.index(self.deadline_s)
        return {group.group_id for at, groups in stored.items() if at >= step for group in groups}
