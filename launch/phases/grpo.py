"""The RL phase: one loop that samples, scores, credits, learns and publishes.

Rollout actors sample groups (rlvid.flow.sampler), the reward pool scores them, the learner credits
and steps (rlvid.algorithms, learners.rl) and publishes weights back. How they overlap is the loop's
(launch.loop); what happens around a step is here. The driver holds references and small numbers,
never a rollout.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import NoReturn

from rlvid.algorithms.streaming import streams
from rlvid.bell import Bell
from rlvid.config import Recipe
from rlvid.data.prompts import load_prompts
from rlvid.launch.driver_state import DriverState, load_driver_state
from rlvid.launch.group_keeper import Keeper
from rlvid.launch.heldout import heldout_prompts, with_judges
from rlvid.launch.local_disk import ledger_home
from rlvid.launch.loop.gang import Gang
from rlvid.launch.loop.live import open_live
from rlvid.launch.loop.recovery import Recovery
from rlvid.launch.loop.replay import open_replay
from rlvid.launch.loop.run import (
    Loop,
    check_canary,
    checkpoint,
    evaluate,
    finish_step,
    record,
)
from rlvid.launch.loop.schedule import chunk_size
from rlvid.launch.loop.steps import GrpoSteps, is_due
from rlvid.launch.loop.trainer import EvaluationCutError, LoopSettings, Trainer
from rlvid.launch.phases.base import Artifacts, PhaseContext, trained_policy
from rlvid.launch.phases.students import carry_sampling, check_student_rl
from rlvid.launch.roles import SamplingRoles, open_sampling
from rlvid.launch.watch import Watch, best_folder
from rlvid.learners.admission import GroupUnavailableError
from rlvid.learners.checkpoint import Checkpoint, find_latest
from rlvid.learners.group import LearnerLostError
from rlvid.models.policy import Policy
from rlvid.observability.progress import open_progress
from rlvid.records import Prompt

logger = logging.getLogger(__name__)

STOPPED_EARLY = "the run was stopped early"


class Grpo:
    """Group-relative policy optimisation on prompts alone."""

    def run(self, context: PhaseContext, artifacts: Artifacts) -> Artifacts:
        recipe = context.recipe
        check_student_rl(recipe, artifacts.policy)
        latest = find_latest(context.folder / "checkpoints") if context.resume else None
        with open_loop(context, artifacts.policy, resumed=latest) as loop:
            stopped_early = train_through_losses(loop, latest)
            exported = context.folder / "policy"
            if stopped_early:
                loop.sampling.line.drop_all(STOPPED_EARLY)
                best_step = loop.steps.state.memory.best_step
                assert best_step is not None, "stopped with no evaluation"
                exported = best_folder(context.folder, best_step)
            else:
                loop.gang.group.export(exported)
            counts = loop.sampling.ledger.counts()
            if not counts.is_balanced or counts.in_flight:
                raise RuntimeError(f"ledger: groups are unaccounted for at the end: {counts}")
        policy, ema_policy = trained_policy(artifacts.policy, exported, recipe.learner.mode)
        for trained in (policy, ema_policy):
            carry_sampling(artifacts.policy, trained)
        return replace(artifacts, policy=policy, ema_policy=ema_policy)


def train_through_losses(loop: Loop, latest: Checkpoint | None) -> bool:
    """Train to the end; a lost learner, or one that cannot have a group, goes back to a checkpoint.

    Returns:
        True when a held-out judge ended it; the phase's policy is then the best one kept.

    Raises:
        LearnerLostError: the learner was lost more often than `learner.crash_budget` allows.
    """
    while True:
        try:
            begin(loop, latest)
            return train(loop)
        except (LearnerLostError, GroupUnavailableError) as error:
            # A group whose object is gone, with its node perhaps, comes back from the disk.
            loop.live.note("lost", f"learner: {error}")
            loop.live.timeline.restarted("learner", loop.sampling.clock.now(), reason=str(error))
            loop.gang.lost(error)
            latest = find_latest(loop.context.folder / "checkpoints")


def begin(loop: Loop, latest: Checkpoint | None) -> None:
    """Bring everything to the step after a checkpoint, or to the beginning."""
    step = loop.recovery.rewind(latest)
    state = load_driver_state(latest.path) if latest else DriverState()
    loop.use_state(state)
    written = latest.step if latest else None
    if latest and state.unmeasured is not None:
        written = latest.step - 1  # the row of its last step waits for the evaluation
    loop.context.recorder.resume_after(written)
    loop.replay.rewind(step)
    loop.gang.open(latest.path if latest else None, version=step)
    loop.trainer.rewind(step, loop.gang, incarnation=loop.gang.incarnation)
    loop.step = step
    loop.live.timeline.went_back(step, loop.sampling.clock.now())
    loop.live.state = "running"


def train(loop: Loop) -> bool:
    """Take steps until the recipe's last one, an early stop, or a notice of pre-emption.

    Returns:
        True when a held-out judge ended it.

    Raises:
        Preempted: the run was asked to make room; its checkpoint is written.
    """
    recipe = loop.recipe
    grpo = recipe.grpo
    manifest = loop.trainer.publish_first()
    loop.sampling.rollouts.wait_version(manifest.version, recipe.learner.deadline_s)
    check_canary(loop, manifest)
    if grpo.evaluate_every and loop.step == 0:
        loop.context.recorder.write(0, evaluate_or_leave(loop, {})[0])
    unmeasured = loop.steps.state.unmeasured
    if unmeasured is not None and finish_row(loop, unmeasured):
        return True
    while loop.step < grpo.num_steps:
        batch = loop.trainer.next_batch()
        if batch is None:
            leave(loop)
        metrics = finish_step(loop, batch)
        loop.step = batch.step + 1
        if finish_row(loop, metrics):
            return True
    return False


def finish_row(loop: Loop, metrics: dict[str, float]) -> bool:
    """Evaluate after the last step where it is due, write its row and its checkpoint.

    Returns:
        True when a held-out judge ends the run.
    """
    grpo, step = loop.recipe.grpo, loop.step - 1
    should_stop = False
    if is_due(step, grpo.evaluate_every, grpo.num_steps):
        measured, should_stop = evaluate_or_leave(loop, metrics)
        metrics |= measured
    loop.steps.state.unmeasured = None
    record(loop, step, metrics)
    if should_stop:  # before the checkpoint: a resume from it would go on past the stop
        return True
    if is_due(step, grpo.checkpoint.every, grpo.num_steps):
        checkpoint(loop, step + 1)
    return False


def evaluate_or_leave(loop: Loop, metrics: dict[str, float]) -> tuple[dict[str, float], bool]:
    """Evaluate; where there is no time for it, leave, and what resumes evaluates first.

    Args:
        metrics: of the step evaluated after, kept in the checkpoint then.

    Raises:
        Preempted: there was no time.
    """
    try:
        return evaluate(loop, loop.step)
    except EvaluationCutError:
        loop.steps.state.unmeasured = metrics if loop.step else None
        leave(loop)


def leave(loop: Loop) -> NoReturn:
    """Write what a later run goes on from, and say that it is to be queued again.

    Raises:
        Preempted: always.
    """
    assert loop.preemption is not None, "nothing else stops the loop"
    if loop.trainer.has_half_fed:
        loop.gang.group.begin_abandon().result()
    loop.trainer.drain(loop.preemption.seconds_left / 2)
    checkpoint(loop, loop.step)
    loop.preemption.raise_preempted(f"the checkpoint after step {loop.step} is written")


@contextmanager
def open_loop(
    context: PhaseContext, policy: Policy, *, resumed: Checkpoint | None
) -> Iterator[Loop]:
    """Start learner, actors, reward pool and the groups' keeper side by side, and the display."""
    recipe = context.recipe
    config = recipe.grpo
    heldout = heldout_prompts(recipe, config.evaluate_prompts) if config.evaluate_every else ()
    # Judges are loaded only where something is held out for them.
    sampling_recipe = with_judges(recipe) if config.evaluate_every else recipe
    with ExitStack() as stack:
        ledger_path = stack.enter_context(ledger_home(context.folder))
        sampling = stack.enter_context(
            open_sampling(sampling_recipe, policy, recipe.learner, ledger_path)
        )
        gang = Gang(recipe, policy, sampling.ledger, sampling.bell)
        stack.callback(gang.shutdown)
        keeper = open_keeper(context, recipe, sampling.bell, stack)
        sampling.wait_ready()
        first_step = resumed.step if resumed else 0
        loop = join_up(
            context, sampling, gang, keeper, heldout=heldout, first_step=first_step, stack=stack
        )
        if context.preemption is not None:
            stack.enter_context(context.preemption.deferred(sampling.bell.ring))
        yield loop


def join_up(
    context: PhaseContext,
    sampling: SamplingRoles,
    gang: Gang,
    keeper: Keeper | None,
    *,
    heldout: tuple[Prompt, ...],
    first_step: int,
    stack: ExitStack,
) -> Loop:
    """Make the loop over what was started: steps, recovery, trainer, and who tells whom what."""
    recipe = context.recipe
    config = recipe.grpo
    progress = stack.enter_context(open_progress("grpo", config.num_steps, first_step=first_step))
    replay = open_replay(context.folder, writes=config.replay_log, earlier=config.replay)
    stack.callback(replay.close)
    steps = GrpoSteps(recipe, load_prompts(recipe.prompts), DriverState())
    steps.versions = replay.versions
    recovery = Recovery(
        keeper=keeper,
        ledger=sampling.ledger,
        line=sampling.line,
        deadline_s=recipe.learner.deadline_s,
    )
    steps.restore_group = recovery.restore
    gang.plans_of = steps.plans
    gang.receivers = lambda: sampling.rollouts.receiver_ids
    trainer = Trainer(
        loop_settings(recipe),
        first_step=first_step,
        steps=steps,
        line=sampling.line,
        rollouts=sampling.rollouts,
        learner=gang,
        ledger=sampling.ledger,
        clock=sampling.clock,
    )
    loop = Loop(
        recipe=recipe,
        context=context,
        sampling=sampling,
        gang=gang,
        keeper=keeper,
        recovery=recovery,
        steps=steps,
        trainer=trainer,
        heldout=heldout,
        progress=progress,
        live=stack.enter_context(open_live(context, sampling, trainer)),
        replay=replay,
        watch=Watch(recipe, steps.state.memory, context.recorder, progress),
        preemption=context.preemption,
    )
    sampling.line.on_ready = loop.ready
    sampling.line.on_quarantine = loop.quarantined
    trainer.on_tick = loop.tick
    return loop


def open_keeper(
    context: PhaseContext, recipe: Recipe, bell: Bell, stack: ExitStack
) -> Keeper | None:
    """Start the process that writes scored groups, where the recipe wants them on disk."""
    if not recipe.storage.keep_groups:
        return None
    keeper = Keeper(context.folder / "groups", recipe.storage, bell=bell)
    keeper.start()
    stack.callback(keeper.shutdown)
    return keeper


def loop_settings(recipe: Recipe) -> LoopSettings:
    """Return what the schedule depends on."""
    rollout = recipe.rollout
    return LoopSettings(
        num_steps=recipe.grpo.num_steps,
        groups_per_step=rollout.groups_per_step,
        chunk_groups=chunk_size(
            groups_per_step=rollout.groups_per_step,
            num_ranks=recipe.learner.data_parallel,
            chunk_groups=recipe.learner.chunk_groups,
            streams=streams(recipe.algorithm, recipe.rewards.aggregation),
        ),
        max_staleness=rollout.max_staleness,
        incarnation=0,
    )
