"""Supervised fine-tuning: flow matching on clips, the stage that gives RL a policy to improve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from rlvid.config import CheckpointConfig, LearnerConfig, OfflineDpoConfig, SftConfig
from rlvid.config.node_group import said_of, share_of
from rlvid.launch.phases.base import Artifacts, PhaseContext, trained_policy
from rlvid.launch.phases.students import refuse_student
from rlvid.learners.checkpoint import find_latest
from rlvid.learners.group import LearnerGroup, LearnerLostError
from rlvid.learners.sft_adapters import AdapterPlan, adapter_settings, plan_adapters, write_index
from rlvid.learners.trainee import learner_device
from rlvid.models.lora_merge import MergeJob, merge_policy
from rlvid.models.policy import Policy
from rlvid.observability.progress import open_progress
from rlvid.observability.recorder import Recorder
from rlvid.observability.trace import Trace
from rlvid.ray_errors import cause_of, first_line

CHUNK_STEPS = 20
"""Optimiser steps of one call to the ranks; metrics arrive that often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What one gang of ranks trains, from the first step to the last."""

    label: str
    """Of its progress."""
    folder: Path
    """Takes its checkpoints and the policy it ends with."""
    num_steps: int
    first_step: int = 0
    """Steps of the phase before it; metrics are labelled by the steps of the phase."""
    recorder: Recorder
    learner: LearnerConfig
    checkpoint: CheckpointConfig
    export: str = "policy"
    """Name of what it ends with, in `folder`."""


class Sft:
    """Trains the policy on the recipe's clips and hands on the trained one."""

    def run(self, context: PhaseContext, artifacts: Artifacts) -> Artifacts:
        recipe, config = context.recipe, context.recipe.sft
        refuse_student(artifacts.policy, "sft")
        if config.balance == "adapters":
            policy, ema_policy = train_adapters(context, artifacts.policy)
        else:
            policy, ema_policy = train_policy(
                context,
                artifacts.policy,
                "sft",
                config,
                lambda: LearnerGroup.start_sft(recipe, artifacts.policy, context.folder),
            )
        return handed_on(artifacts, config, policy, ema_policy)


def handed_on(
    artifacts: Artifacts,
    config: SftConfig | OfflineDpoConfig,
    policy: Policy,
    ema_policy: Policy | None,
) -> Artifacts:
    """Return the artifacts with what was trained: its average, where the section asks for it."""
    if config.ema_is_policy and ema_policy is not None:
        policy = ema_policy
    return replace(artifacts, policy=policy, ema_policy=ema_policy)


def train_policy(
    context: PhaseContext,
    base: Policy,
    label: str,
    config: SftConfig | OfflineDpoConfig,
    start: Callable[[], LearnerGroup],
) -> tuple[Policy, Policy | None]:
    """Train by one gang in the folder of the phase; return the policy and that of its average."""
    training = Training(
        label=label,
        folder=context.folder,
        num_steps=config.num_steps,
        recorder=context.recorder,
        learner=config.learner,
        checkpoint=config.checkpoint,
    )
    return trained_policy(base, train(context, training, start), config.learner.mode)


def train(context: PhaseContext, training: Training, start: Callable[[], LearnerGroup]) -> Path:
    """Train from the last checkpoint to the end; return the folder of what was trained."""
    num_steps, due = training.num_steps, training.checkpoint
    checkpoints = training.folder / "checkpoints"
    latest = find_latest(checkpoints) if context.resume else None
    step = latest.step if latest else 0
    training.recorder.resume_after(training.first_step + latest.step if latest else None)
    trace = Trace(context.folder / "trace.json")
    learner = start()
    try:
        with trace.span("learner", "load, and encode clips"):
            learner.wait_ready(
                context.recipe.cluster.start_deadline_s + training.learner.deadline_s
            )
        if latest:
            learner.load_checkpoint(latest.path)
        with open_progress(training.label, num_steps, first_step=step) as progress:
            while step < num_steps:
                last = next_stop(step, num_steps, due.every)
                with trace.span("learner", "train"):
                    reports = learner.train_steps(step, last)
                for report in reports:
                    training.recorder.write(training.first_step + report.step + 1, report.metrics)
                progress.step_done(last - 1, reports[-1].metrics)
                step = last
                if step % due.every == 0 or step == num_steps:
                    learner.save_checkpoint(checkpoints, step=step, keep=due.keep)
        exported = training.folder / training.export
        learner.export(exported)
    finally:
        trace.close()
        learner.shutdown()
    return exported


def train_adapters(context: PhaseContext, base: Policy) -> tuple[Policy, Policy | None]:
    """Train an adapter for each dimension; return the merged policy, and that of the averages.

    Each is a gang of its own, so that nothing of one is left in the next. The metrics of each have
    a TensorBoard run of their own.
    """
    recipe, config = context.recipe, context.recipe.sft
    plans = plan_adapters(recipe, context.folder)
    for number, plan in enumerate(plans, start=1):
        if context.resume and plan.is_done:
            continue
        plan.folder.mkdir(parents=True, exist_ok=True)
        name = f"{context.recorder.phase}/{plan.folder.name}"
        with Recorder(context.recorder.path.parent, name) as recorder:
            training = Training(
                label=f"sft {plan.dimension} ({number} of {len(plans)})",
                folder=plan.folder,
                num_steps=plan.num_steps,
                first_step=plan.first_step,
                recorder=recorder,
                learner=config.learner,
                checkpoint=config.checkpoint,
            )
            settings = adapter_settings(recipe, base, plan, context.folder)
            train(context, training, partial(LearnerGroup, settings))
        plan.set_done()
    policy = merge(context, base, plans, "policy")
    ema_policy = None
    if config.learner.ema is not None:
        ema_policy = merge(context, base, plans, "policy_ema")
    write_index(context.folder, base, config, plans)
    return policy, ema_policy


def merge(context: PhaseContext, base: Policy, plans: Sequence[AdapterPlan], name: str) -> Policy:
    """Merge what each adapter exported as `name`; the merged policy has that name in the phase.

    In a process of its own and on what a learner rank has, since the driver holds no model.

    Raises:
        LearnerLostError: the process died, or took longer than `sft.learner.deadline_s`.
    """
    recipe, learner = context.recipe, context.recipe.sft.learner
    job = MergeJob(
        base=base,
        model=recipe.model,
        adapters={str(plan.folder / name): plan.weight for plan in plans},
        config=recipe.sft.merge,
        folder=context.folder / name,
        device=learner_device(recipe.model, learner),
        num_threads=recipe.cluster.threads_per_role,
    )
    task = ray.remote(
        num_cpus=learner.num_cpus,
        num_gpus=learner.num_gpus,
        resources=share_of(learner.node_group),
        max_retries=0,
    )
    merging = task(merge_policy).remote(job)
    try:
        ray.get(merging, timeout=learner.deadline_s)
    except RayTaskError as error:
        raise cause_of(error) from error
    except GetTimeoutError as error:
        ray.cancel(merging, force=True)
        raise LearnerLostError(
            f"sft.learner.deadline_s: merging {len(plans)} adapters took longer than "
            f"{learner.deadline_s:g} s; raise it, or give sft.learner.num_gpus, and resume the "
            "run: the adapters are trained." + said_of(learner.node_group, "sft.learner.node_group")
        ) from error
    except RayError as error:
        raise LearnerLostError(
            f"sft: the process that merges {len(plans)} adapters is gone: {first_line(error)}. It "
            "needs the memory of the whole base model; resume the run: the adapters are trained"
        ) from error
    return Policy(model_path=str(job.folder))


def next_stop(step: int, num_steps: int, checkpoint_every: int) -> int:
    """Return the step at which the next call ends: a chunk on, but at each checkpoint."""
    next_checkpoint = (step // checkpoint_every + 1) * checkpoint_every
    return min(step + CHUNK_STEPS, next_checkpoint, num_steps)
