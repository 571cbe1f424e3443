"""The gang of ranks that train a rewriter: a learner group with three calls more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rlvid.enhancement.adapter import PublishedAdapter
from rlvid.enhancement.rewriter import Rewrite
from rlvid.learners.group import LearnerGroup
from rlvid.records import Prompt, StepReport


class EnhancerGroup(LearnerGroup):
    """Ranks of `EnhancerLearner` as one."""

    def rewrite(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]
    ) -> list[list[Rewrite]]:
        """Return rewrites [P][G] of the prompts, one for each of the seeds [P][G].

        Raises:
            LearnerLostError: a rank died, or it took longer than the learner's `deadline_s`.
        """
        return self._loop.begin(
            f"rewriting {len(prompts)} prompts",
            lambda: [rank.rewrite.remote(prompts, seeds) for rank in self._ranks],
            interleaved,
            deadline_s=self._learner.deadline_s,
        ).result()

    def publish_adapter(self, folder: Path) -> PublishedAdapter:
        """Have the adapter written below `folder` as it is now; see `EnhancerLearner`.

        Raises:
            LearnerLostError: as `rewrite`.
        """
        published: PublishedAdapter = self._loop.begin(
            "publishing the adapter",
            lambda: [rank.publish_adapter.remote(folder) for rank in self._ranks],
            lambda answers: answers[0],
            deadline_s=self._learner.deadline_s,
        ).result()
        return published

    def learn(
        self,
        rewrites: Sequence[Sequence[Rewrite]],
        advantage: Tensor,
        trained: Tensor,
        *,
        step: int,
    ) -> StepReport:
        """Take the updates of a batch; see `EnhancerLearner.learn`.

        Raises:
            LearnerLostError: as `rewrite`, or no micro-batch was finished within `stall_s`.
        """
        report: StepReport = self._loop.begin(
            f"step {step}",
            lambda: [rank.learn.remote(rewrites, advantage, trained, step) for rank in self._ranks],
            lambda answers: answers[0],
            deadline_s=self._learner.deadline_s,
            has_progress=True,
        ).result()
        return report


def interleaved(shares: Sequence[Sequence[Any]]) -> list[Any]:
    """Return in order what rank r has of every place p with p mod ranks = r."""
    longest = max((len(share) for share in shares), default=0)
    return [share[turn] for turn in range(longest) for share in shares if turn < len(share)]
