"""Offline preference optimisation: Flow-DPO on stored pairs, without a rollout or a scorer."""

from __future__ import annotations

from dataclasses import replace

from rlvid.launch.phases.base import Artifacts, PhaseContext, trained_policy
from rlvid.launch.phases.sft import Training, train
from rlvid.launch.phases.students import refuse_student
from rlvid.learners.group import LearnerGroup


class OfflineDpo:
    """Trains the policy on the recipe's pairs and hands on the trained one."""

    def run(self, context: PhaseContext, artifacts: Artifacts) -> Artifacts:
        recipe, config = context.recipe, context.recipe.dpo
        refuse_student(artifacts.policy, "dpo")
        exported = train(
            context,
            Training(
                label="dpo",
                folder=context.folder,
                num_steps=config.num_steps,
                recorder=context.recorder,
                learner=config.learner,
                checkpoint=config.checkpoint,
            ),
            lambda: LearnerGroup.start_dpo(recipe, artifacts.policy, context.folder),
        )
        policy, ema_policy = trained_policy(artifacts.policy, exported, config.learner.mode)
        if config.ema_is_policy and ema_policy is not None:
            policy = ema_policy
        return replace(artifacts, policy=policy, ema_policy=ema_policy)
