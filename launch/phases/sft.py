"""Supervised fine-tuning: flow matching on clips, the stage that gives RL a policy to improve."""

from __future__ import annotations

from dataclasses import replace

from rlvid.launch.phases.base import Artifacts, PhaseContext, trained_policy
from rlvid.learners.checkpoint import find_latest
from rlvid.learners.group import LearnerGroup
from rlvid.observability.progress import open_progress
from rlvid.observability.trace import Trace

CHUNK_STEPS = 20
"""Optimiser steps of one call to the ranks; metrics arrive that often."""


class Sft:
    """Trains the policy on the recipe's clips and hands on the trained one."""

    def run(self, context: PhaseContext, artifacts: Artifacts) -> Artifacts:
        recipe, config = context.recipe, context.recipe.sft
        checkpoints = context.folder / "checkpoints"
        latest = find_latest(checkpoints) if context.resume else None
        step = latest.step if latest else 0
        context.recorder.resume_after(latest.step if latest else None)
        trace = Trace(context.folder / "trace.json")
        learner = LearnerGroup.start_sft(recipe, artifacts.policy, context.folder)
        try:
            with trace.span("learner", "load and encode clips"):
                learner.wait_ready(recipe.cluster.start_deadline_s + config.learner.deadline_s)
            if latest:
                learner.load_checkpoint(latest.path)
            with open_progress("sft", config.num_steps, first_step=step) as progress:
                while step < config.num_steps:
                    last = next_stop(step, config.num_steps, config.checkpoint.every)
                    with trace.span("learner", "train"):
                        reports = learner.train_steps(step, last)
                    for report in reports:
                        context.recorder.write(report.step + 1, report.metrics)
                    progress.step_done(last - 1, reports[-1].metrics)
                    step = last
                    if step % config.checkpoint.every == 0 or step == config.num_steps:
                        learner.save_checkpoint(checkpoints, step=step, keep=config.checkpoint.keep)
            exported = context.folder / "policy"
            learner.export(exported)
        finally:
            trace.close()
            learner.shutdown()
        policy, ema_policy = trained_policy(artifacts.policy, exported, config.learner.mode)
        if config.ema_is_policy and ema_policy is not None:
            policy = ema_policy
        return replace(artifacts, policy=policy, ema_policy=ema_policy)


def next_stop(step: int, num_steps: int, checkpoint_every: int) -> int:
    """Return the step at which the next call ends: a chunk on, but at each checkpoint."""
    next_checkpoint = (step // checkpoint_every + 1) * checkpoint_every
    return min(step + CHUNK_STEPS, next_checkpoint, num_steps)
