"""What happens around a step: its row of metrics, evaluation, checkpoint, canary."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

from rlvid.config import Recipe
from rlvid.launch import driver_state
from rlvid.launch.driver_state import DriverState
from rlvid.launch.group_keeper import Keeper, KeepFailure
from rlvid.launch.groups import ScoredGroup
from rlvid.launch.heldout import measure
from rlvid.launch.loop.gang import Gang
from rlvid.launch.loop.line import Issue
from rlvid.launch.loop.live import Live
from rlvid.launch.loop.recovery import Recovery
from rlvid.launch.loop.replay import Replay
from rlvid.launch.loop.steps import GrpoSteps
from rlvid.launch.loop.trainer import Batch, Trainer
from rlvid.launch.phases.base import PhaseContext
from rlvid.launch.preemption import Preemption
from rlvid.launch.roles import SamplingRoles
from rlvid.launch.step_metrics import step_metrics
from rlvid.launch.watch import Watch, best_folder, correlation_table, drop_all_but_best
from rlvid.learners.checkpoint import oldest_step
from rlvid.observability.progress import PhaseProgress
from rlvid.records import Prompt, WeightsManifest
from rlvid.weights import canary_tolerance

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Loop:
    """What a GRPO run works with."""

    recipe: Recipe
    context: PhaseContext
    sampling: SamplingRoles
    gang: Gang
    keeper: Keeper | None
    recovery: Recovery
    steps: GrpoSteps
    trainer: Trainer
    heldout: tuple[Prompt, ...]
    progress: PhaseProgress
    live: Live
    replay: Replay
    watch: Watch
    preemption: Preemption | None
    step: int = 0
    """The next to finish; optimiser steps done."""
    last_done_s: float = field(default=0.0)
    """Clock when the step before was published."""
    num_lost: int = 0
    """Actors lost until the last step was done."""

    def use_state(self, state: DriverState) -> None:
        """Go on from another state of the driver."""
        self.steps.state = state
        self.watch = Watch(self.recipe, state.memory, self.context.recorder, self.progress)

    def tick(self) -> None:
        """Look after what moves beside the steps; called in every turn of the loop.

        Raises:
            DiskFullError: a group could not be written.
        """
        if self.keeper is not None:
            for outcome in self.keeper.poll():
                if isinstance(outcome, KeepFailure):
                    self._not_kept(outcome)
        asked = self.preemption
        if asked is not None and asked.is_requested and not self.trainer.is_stopping:
            logger.warning("stopping: %s", asked.reason)
            self.live.state = "draining"
            self.trainer.stop(asked.seconds_left / 2)
        self._compare_canary()
        self.live.tick()

    def _compare_canary(self) -> None:
        """Hand the pool what the learner answered after a publish; it asks the actors."""
        found = self.gang.take_canary()
        if found is not None:
            order, (latents, sigma, velocity) = found
            tolerance = canary_tolerance(self.recipe.model.dtype)
            text = self.gang.canary_text
            self.sampling.rollouts.set_canary(latents, sigma, text, velocity, tolerance, order)

    def ready(self, group: ScoredGroup, issue: Issue) -> None:
        """Have a scored group written to disk."""
        if self.keeper is not None and issue.trains:
            self.keeper.begin_keep(group.task.group_id, group.group, group.scores, step=issue.step)

    def quarantined(self, reason: str) -> None:
        """Show that a prompt was taken out.

        Raises:
            RolloutLostError: it was the last one.
        """
        self.live.note("quarantine", reason)
        self.steps.check_prompts(self.sampling.line.quarantined)

    def _not_kept(self, failure: KeepFailure) -> None:
        if failure.is_disk_full:
            raise failure.error
        logger.warning(
            "a group is not on the disk, a restart would sample it again group=%s error=%s",
            failure.group_id,
            failure.error,
        )


def finish_step(loop: Loop, batch: Batch) -> dict[str, float]:
    """Return the row of metrics of a step that is trained and published."""
    assert batch.report is not None, "the batch is not trained"
    assert batch.manifest is not None, "the batch is not published"
    groups_per_step = loop.recipe.rollout.groups_per_step
    loop.replay.learned(batch, first_order=batch.step * groups_per_step)
    table = loop.steps.tables[batch.step]
    num_lost = loop.sampling.rollouts.num_lost
    began = max(loop.last_done_s, 0.0) or batch.opened_s
    metrics = step_metrics(
        loop.recipe,
        batch.groups,
        batch.report,
        batch.manifest,
        weights=loop.steps.weights[batch.step],
        num_lost=num_lost - loop.num_lost,
        seconds={
            "sample": batch.fed_s - batch.opened_s,
            "learn": batch.reported_s - batch.fed_s,
            "step": batch.published_s - began,
        },
        pool=loop.sampling.rewards.step_metrics(),
    )
    loop.num_lost, loop.last_done_s = num_lost, batch.published_s
    counts = loop.sampling.line.take_counts()
    metrics |= counts.metrics() | loop.sampling.rollouts.step_metrics()
    metrics |= loop.gang.group.delivery.metrics
    if metrics.get("rollout/canary/unchecked"):
        loop.gang.wants_canary = True
    if loop.keeper is not None:
        loop.keeper.learned_from(batch.step + 1)
        metrics |= loop.keeper.step_metrics()
    metrics |= loop.live.step_done(batch, counts)
    metrics |= loop.live.mfu(metrics)
    metrics |= loop.watch.after_step(batch.step + 1, table, batch.groups)
    loop.steps.forget(batch.step)
    return metrics


def evaluate(loop: Loop, step: int) -> tuple[dict[str, float], bool]:
    """Measure the policy after `step` steps on held-out prompts with the pinned sampler.

    The judges score too; the policy they like most is kept where an early stop may want it. Its
    groups count to the step before, so that a resume from a checkpoint of `step` keeps them.

    Returns:
        The metrics, and whether to stop.
    """
    loop.live.state = "evaluating"
    with loop.live.timeline.span("evaluate", "heldout"):
        measured = measure(
            loop.recipe,
            loop.trainer.run_issues,
            loop.sampling.ledger,
            loop.heldout,
            label=f"heldout-{step:06d}",
            num_seeds=1,
            step=max(step - 1, 0),
            version=step,
        )
    loop.live.state = "running"
    found = loop.watch.after_heldout(step, measured)
    if found.is_best and loop.recipe.grpo.early_stop.judge_falls:
        loop.gang.group.export(best_folder(loop.context.folder, step))
    metrics = {**measured.metrics(), **found.metrics}
    reward = metrics.get("heldout/reward/mean")
    shown = "missing, no prompt was scored" if reward is None else f"{reward:.4f}"
    loop.progress.say(f"step {step} held-out reward {shown}")
    loop.context.recorder.write_text("correlation", step, correlation_table(metrics))
    loop.last_done_s = loop.sampling.clock.now()
    return metrics, found.should_stop


def checkpoint(loop: Loop, step: int) -> None:
    """Write what a resume needs: learner, driver, ledger, and the groups nobody learned from yet.

    Prompts, plans and seeds follow from the step; the sampling actors hold nothing.
    """
    config = loop.recipe.grpo.checkpoint
    folder = loop.context.folder / "checkpoints"
    state = json.dumps(loop.steps.state.to_json())

    def fill(temporary: Path) -> None:
        (temporary / driver_state.FILE).write_text(state)
        loop.sampling.ledger.snapshot(temporary / "ledger.sqlite")
        if loop.keeper is not None:
            deadline_s = loop.recipe.learner.deadline_s
            loop.keeper.flush(deadline_s)
            loop.keeper.link_into(temporary, step, deadline_s)

    with loop.live.timeline.span("checkpoint", "write"):
        loop.gang.group.save_checkpoint(folder, step=step, keep=config.keep, fill=fill)
    if loop.keeper is not None:
        loop.keeper.drop_before(oldest_step(folder))
    drop_all_but_best(loop.context.folder, loop.steps.state.memory.best_step)
    loop.last_done_s = loop.sampling.clock.now()


def record(loop: Loop, step: int, metrics: dict[str, float]) -> None:
    """Write the row of a step and show it."""
    loop.context.recorder.write(step + 1, metrics)
    loop.progress.step_done(step, metrics)
    loop.live.show(metrics)


def check_canary(loop: Loop, manifest: WeightsManifest) -> None:
    """Compare each actor's velocity on a fixed input with the learner's.

    Digests prove that the bytes arrived; only this proves that they are what samples. Actors that
    join later, replacements too, are compared by the pool before they sample.

    Raises:
        RolloutLostError: an actor's velocity differs by more than the manifest's tolerance.
    """
    text = loop.steps.prompts[0].model_text
    latents, sigma, velocity = loop.gang.group.canary(text)
    rollouts = loop.sampling.rollouts
    rollouts.set_canary(latents, sigma, text, velocity, manifest.canary_tolerance)
    rollouts.wait_canary(loop.recipe.learner.deadline_s)
    loop.gang.canary_text = text
