"""Distillation: the policy into a few-step student, and that into one that streams.

Each stage is a gang of its own that starts from the policy of the stage before; what a stage made
stays in `<phase>/<stage>/policy` with a `sampling.json` that says how it is sampled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlvid.config.distillation import StageConfig, StageName
from rlvid.launch.phases.base import Artifacts, PhaseContext, trained_policy
from rlvid.launch.phases.sft import next_stop
from rlvid.launch.phases.students import refuse_student
from rlvid.learners.checkpoint import find_latest
from rlvid.learners.distill_monitor import IS_FADED
from rlvid.learners.group import LearnerGroup
from rlvid.models.policy import Policy
from rlvid.observability.progress import open_progress
from rlvid.observability.recorder import Recorder
from rlvid.observability.trace import Trace

DONE_FILE = "stage.json"


class Distillation:
    """Trains the stages in order and hands on the student of the last one."""

    def run(self, context: PhaseContext, artifacts: Artifacts) -> Artifacts:
        refuse_student(artifacts.policy, "distillation")
        policies: dict[StageName, Policy] = {}
        for number, name in enumerate(context.recipe.distillation.stages):
            stage = Stage(
                name=name,
                label=f"distillation {number + 1}: {name}",
                folder=context.folder / name,
                start=start_of(context, name, policies, artifacts.policy),
                teacher=artifacts.policy,
            )
            policies[name] = _finished(stage) or _train(context, stage)
        teacher, last = artifacts.newest_stage, context.recipe.distillation.stages[-1]
        for name in policies:
            if name in ("few_step", last):  # the others are on the way to a student
                artifacts = artifacts.with_stage(name, policies[name], teacher=teacher)
        return artifacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one gang of ranks trains."""

    name: StageName
    label: str
    """Of its progress."""
    folder: Path
    """Takes its checkpoints and the policy it ends with."""
    start: Policy
    teacher: Policy
    """What the phase was given."""


def start_of(
    context: PhaseContext, name: StageName, policies: Mapping[StageName, Policy], given: Policy
) -> Policy:
    """Return the policy that a stage trains on; the recipe has made sure that it is there."""
    if name in ("few_step", "causal_teacher"):
        return given
    if name == "self_forcing":
        return policies["causal_init"]
    is_causal = context.recipe.distillation.causal_init.teacher == "causal"
    return policies["causal_teacher" if is_causal else "few_step"]


def _train(context: PhaseContext, stage: Stage) -> Policy:
    """Train a stage from its last checkpoint to its end, and write what it made."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    name = f"{context.recorder.phase}/{stage.name}"
    with (
        Recorder(context.recorder.path.parent, name) as recorder,
        Trace(context.folder / "trace.json") as trace,
    ):
        faded_at = _take_steps(context, stage, recorder, trace)
    if faded_at is not None:
        _export_last_checkpoint(context, stage, faded_at)
    learner = context.recipe.distillation.learner
    policy, ema_policy = trained_policy(stage.start, stage.folder / "policy", learner.mode)
    _set_finished(stage, ema_policy or policy, faded_at)
    return ema_policy or policy


def _take_steps(
    context: PhaseContext, stage: Stage, recorder: Recorder, trace: Trace
) -> int | None:
    """Train and export; or return the step after which motion had faded, and export nothing."""
    config = context.recipe.distillation
    own: StageConfig = getattr(config, stage.name)
    checkpoints = stage.folder / "checkpoints"
    latest = find_latest(checkpoints) if context.resume else None
    step = latest.step if latest else 0
    recorder.resume_after(latest.step if latest else None)
    learner = _start(context, stage)
    try:
        with trace.span("learner", "load"):
            _wait_ready(context, learner)
        if latest:
            learner.load_checkpoint(latest.path)
        with open_progress(stage.label, own.num_steps, first_step=step) as progress:
            while step < own.num_steps:
                last = next_stop(step, own.num_steps, config.checkpoint.every)
                with trace.span("learner", "train"):
                    reports = learner.train_steps(step, last)
                for report in reports:
                    recorder.write(report.step + 1, report.metrics)
                progress.step_done(last - 1, reports[-1].metrics)
                step = last
                if reports[-1].metrics.get(IS_FADED, 0.0):
                    progress.say(
                        f"step {step}: motion has faded; going back to the last checkpoint"
                    )
                    return step
                if step % config.checkpoint.every == 0 or step == own.num_steps:
                    learner.save_checkpoint(checkpoints, step=step, keep=config.checkpoint.keep)
        learner.export(stage.folder / "policy")
    finally:
        learner.shutdown()
    return None


def _export_last_checkpoint(context: PhaseContext, stage: Stage, faded_at: int) -> None:
    """Export what the stage was before its motion faded.

    Raises:
        ValueError: there is no checkpoint of before.
    """
    latest = find_latest(stage.folder / "checkpoints")
    if latest is None:
        raise ValueError(
            f"distillation.{stage.name}: motion had faded at step {faded_at}, before the first "
            "checkpoint; lower distillation.checkpoint.every or the learning rates, or set "
            "distillation.monitor.min_frac to null to train on"
        )
    learner = _start(context, stage)
    try:
        _wait_ready(context, learner)
        learner.load_checkpoint(latest.path)
        learner.export(stage.folder / "policy")
    finally:
        learner.shutdown()


def _start(context: PhaseContext, stage: Stage) -> LearnerGroup:
    return LearnerGroup.start_distillation(
        context.recipe, stage.name, stage.start, stage.teacher, stage.folder
    )


def _wait_ready(context: PhaseContext, learner: LearnerGroup) -> None:
    recipe = context.recipe
    learner.wait_ready(recipe.cluster.start_deadline_s + recipe.distillation.learner.deadline_s)


def _set_finished(stage: Stage, policy: Policy, faded_at: int | None) -> None:
    """Mark the stage as finished; the rename makes it all or nothing.

    The policy's folder is written by its place in the stage, so that a run may be moved.
    """
    folder = Path(policy.lora_path or policy.model_path)
    tree = {
        "policy": folder.relative_to(stage.folder).as_posix(),
        "is_lora": policy.lora_path is not None,
        "motion_faded_at_step": faded_at,
    }
    temporary = stage.folder / f"{DONE_FILE}.part"
    temporary.write_text(json.dumps(tree, indent=1) + "\n")
    os.replace(temporary, stage.folder / DONE_FILE)


def _finished(stage: Stage) -> Policy | None:
    """Return the policy of a stage that has finished, else None."""
    path = stage.folder / DONE_FILE
    if not path.is_file():
        return None
    tree = json.loads(path.read_text())
    folder = str(stage.folder / tree["policy"])
    if tree["is_lora"]:
        return Policy(model_path=stage.start.model_path, lora_path=folder)
    return Policy(model_path=folder)
