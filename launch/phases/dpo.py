"""Offline preference optimisation: Flow-DPO on stored pairs, without a rollout or a scorer."""

from __future__ import annotations

from rlvid.launch.phases.base import Artifacts, PhaseContext
from rlvid.launch.phases.sft import handed_on, train_policy
from rlvid.launch.phases.students import refuse_student
from rlvid.learners.group import LearnerGroup


class OfflineDpo:
    """Trains the policy on the recipe's pairs and hands on the trained one."""

    def run(self, context: PhaseContext, artifacts: Artifacts) -> Artifacts:
        recipe, config = context.recipe, context.recipe.dpo
        refuse_student(artifacts.policy, "dpo")
        policy, ema_policy = train_policy(
            context,
            artifacts.policy,
            "dpo",
            config,
            lambda: LearnerGroup.start_dpo(recipe, artifacts.policy, context.folder),
        )
        return handed_on(artifacts, config, policy, ema_policy)
