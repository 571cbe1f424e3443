"""The RL phase of a virtual run: the loop's own line and trainer, over virtual ports.

It does what `launch.phases.grpo` does around a step: evaluation, checkpoint, and from a checkpoint
on when learner or driver are lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rlvid.actors.fleet import FleetSettings
from rlvid.launch.loop.line import GroupLine, LineCounts
from rlvid.launch.loop.ports import Rewards, Rollouts
from rlvid.launch.loop.recovery import Recovery
from rlvid.launch.loop.trainer import Batch, EvaluationCutError, LoopSettings, Trainer
from rlvid.launch.simulate.learner import VirtualLearner, VirtualLearnerLostError
from rlvid.launch.simulate.plan import SimulationPlan
from rlvid.launch.simulate.rewards import VirtualRewards
from rlvid.launch.simulate.rollouts import VirtualRollouts
from rlvid.launch.simulate.steps import VirtualSteps
from rlvid.launch.simulate.tally import Tally
from rlvid.observability.recovery import Recovery as Share
from rlvid.observability.recovery import StepWindow

if TYPE_CHECKING:
    from rlvid.launch.simulate.world import World

KEEPER_S = 60.0
"""Deadline of the virtual disk, which is never late."""
QUIET_S = 1e9
"""Between heartbeats where nothing fails: nobody listens for them."""


class DriverLostError(RuntimeError):
    """The virtual driver died: what it had in memory is gone."""


@dataclass(frozen=True, slots=True)
class VirtualCheckpoint:
    """Where training goes on."""

    step: int
    is_measured: bool = True
    """False while the evaluation after its last step is still to be made."""
    path: Path = Path("virtual")


@dataclass(slots=True)
class Watched:
    """What is noted of a run besides the tally."""

    done: list[Batch] = field(default_factory=list)
    """Every step that was finished, those that were done again too."""
    staleness: Counter[int] = field(default_factory=Counter)
    share: Share = field(default_factory=Share)
    counts: LineCounts = field(default_factory=LineCounts)
    """Of drivers that died."""
    snapshots: list[tuple[float, Tally]] = field(default_factory=list)
    """Clock and tally after each finished step."""


class VirtualDriver:
    """One process of the driver; after its death another one is made."""

    def __init__(
        self,
        world: World,
        *,
        checkpoint: VirtualCheckpoint | None,
        wrap: Callable[[VirtualRollouts], Rollouts],
    ) -> None:
        """Be born into a world, where its predecessor left a checkpoint.

        Args:
            wrap: puts something between loop and rollouts; tests have it tell lies.
        """
        plan, clock, ledger = world.plan, world.clock, world.ledger
        injector, tally, source = world.injector, world.tally, world.source
        self.plan, self._ledger, self._clock = plan, ledger, clock
        self._injector, self._tally, self._source = injector, tally, source
        self._keeper, self._watched = world.keeper, world.watched
        self.checkpoint = checkpoint
        self.rollouts = VirtualRollouts(
            clock,
            fleet_settings(plan),
            plan.num_actors,
            costs=plan.costs,
            injector=injector,
            tally=tally,
            source=source,
        )
        self._rewards = VirtualRewards(
            clock,
            plan.num_reward_workers,
            costs=plan.costs,
            injector=injector,
            tally=tally,
            source=source,
            deadline_s=plan.reward_deadline_s,
        )
        rollouts = wrap(self.rollouts)
        self.steps = VirtualSteps(plan)
        self.line = GroupLine(
            rollouts,
            cast(Rewards, self._rewards),
            ledger,
            lease_s=plan.deadline_s,
            max_deaths_per_prompt=plan.max_deaths_per_prompt,
            on_ready=world.keeper.keep,
        )
        self._recovery = Recovery(
            keeper=cast(Any, world.keeper), ledger=ledger, line=self.line, deadline_s=KEEPER_S
        )
        self.steps.restore_group = self._recovery.restore
        self._learner: VirtualLearner | None = None
        self.trainer = Trainer(
            loop_settings(plan),
            first_step=0,
            steps=self.steps,
            line=self.line,
            rollouts=rollouts,
            learner=cast(Any, None),
            ledger=ledger,
            clock=clock,
        )
        self.trainer.on_tick = clock.turned
        clock.on_pass = self._passed
        self._last_s = clock.now()
        self._stop_s = self._worked_s = 0.0
        world.watched.share.began(clock.now())

    def run(self) -> None:
        """Train to the end, through losses of the learner.

        Raises:
            DriverLostError: this process is over.
        """
        learner_start = self.plan.costs.learner_start_s.draw(self._source)
        while True:
            try:
                self._begin(learner_start)
                self._train()
                return
            except VirtualLearnerLostError:
                learner_start = self.plan.costs.learner_start_s.draw(self._source)

    def close(self) -> None:
        """End what dies with the driver."""
        self.rollouts.close()
        self._rewards.close()
        counts, own = self._watched.counts, self.line.counts
        counts.lost += own.lost
        counts.late_answers += own.late_answers
        counts.stale_answers += own.stale_answers
        counts.quarantined += own.quarantined
        counts.wasted_s += own.wasted_s

    def _begin(self, learner_start_s: float) -> None:
        checkpoint = cast(Any, self.checkpoint)
        step = self._recovery.rewind(checkpoint)
        incarnation = self._ledger.count("learner_starts")
        self._learner = VirtualLearner(
            self._clock,
            self.plan.costs,
            self._injector,
            self._tally,
            self._source,
            incarnation=incarnation,
            version=step,
            uniform_frac=self.plan.uniform_frac,
            starts_s=learner_start_s,
        )
        self.trainer.rewind(step, self._learner, incarnation=incarnation)
        self.trainer.publish_first()
        self._watched.share.back_to(step)
        self._last_s = self._clock.now()

    def _train(self) -> None:
        plan, steps = self.plan, self.steps
        step = self.checkpoint.step if self.checkpoint else 0
        if plan.evaluate_every and step == 0:
            self._evaluate(0)
        if self.checkpoint and not self.checkpoint.is_measured:
            self._evaluate(step)
            self._write_checkpoint(step)
        while step < plan.num_steps:
            if self._injector.strikes("driver_lost"):
                self._clock.after(self._source.random() * self._step_s(), self._die)
            batch = self.trainer.next_batch()
            if batch is None:
                self._leave(step)
            assert batch is not None, "a run that is left does not go on"
            self._done(batch)
            step = batch.step + 1
            if steps.is_evaluated(batch.step):
                self._evaluate(step)
            if steps.is_checkpoint(batch.step):
                self._write_checkpoint(step)

    def stop(self, seconds: float) -> None:
        """Make room within `seconds`."""
        self._stop_s = seconds
        if not self.trainer.is_stopping:
            self.trainer.stop(seconds / 2)

    def _evaluate(self, step: int) -> None:
        if self._injector.strikes("learner_lost"):
            self._clock.after(self._source.random() * self._step_s(), self._lose_learner)
        try:
            groups = self.trainer.run_issues(self.steps.evaluation(step))
        except EvaluationCutError:
            self._leave(step, is_measured=step == 0)
            raise
        for group in groups:
            self._ledger.drop(group.task.group_id, "evaluation")

    def _leave(self, step: int, *, is_measured: bool = True) -> None:
        """As `launch.phases.grpo.leave`.

        Raises:
            DriverLostError: always; the launcher starts another one.
        """
        assert self._learner is not None, "it trained"
        if self.trainer.has_half_fed:
            self._learner.abandon()
        self.trainer.drain(self._stop_s / 2)
        self._write_checkpoint(step, is_measured=is_measured)
        self._injector.counts["made_room"] += 1
        raise DriverLostError("the driver made room")

    def _write_checkpoint(self, step: int, *, is_measured: bool = True) -> None:
        assert self._learner is not None, "it trained"
        seconds = self.plan.costs.checkpoint_s.draw(self._source)
        self.trainer.pump(self._learner.begin_checkpoint(step, seconds).poll)
        self.checkpoint = VirtualCheckpoint(step, is_measured)
        self._keeper.drop_before(step)

    def _done(self, batch: Batch) -> None:
        assert batch.report is not None, "the step is finished"
        watched = self._watched
        trained = set(batch.report.trained_group_ids)
        for group in batch.groups:
            if group.task.group_id in trained:
                watched.staleness[batch.step - group.summary.policy_version] += 1
        batch.groups = []  # of 100,000 groups
        watched.done.append(batch)
        watched.share.add(
            StepWindow(step=batch.step + 1, start_s=self._last_s, end_s=batch.published_s)
        )
        tally = self._tally
        worked_s = tally.learning_s + tally.publishing_s
        seconds = max(batch.published_s - self._last_s, 1e-9)
        idle_frac = 1.0 - min(1.0, (worked_s - self._worked_s) / seconds)
        self.rollouts.fleet.note_learner_idle(idle_frac)
        self._worked_s, self._last_s = worked_s, batch.published_s
        watched.snapshots.append((batch.published_s, self._tally.copy()))

    def _passed(self, seconds: float) -> None:
        """Note what the learner did while time passed."""
        tally = self._tally
        tally.waits_s[self.trainer.waits_for] += seconds
        tally.actor_s += seconds * self.rollouts.fleet.num_actors

    def _step_s(self) -> float:
        return max(self.plan.ideal_stages_s.values())

    def _lose_learner(self) -> None:
        """A rank dies while the learner rests; heartbeats tell."""
        if self._is_here() and self.trainer.waits_for:
            raise VirtualLearnerLostError("a learner rank died at rest")

    def _is_here(self) -> bool:
        return self._clock.on_pass == self._passed

    def _die(self) -> None:
        if self._is_here():
            raise DriverLostError("the driver died")


def loop_settings(plan: SimulationPlan) -> LoopSettings:
    """Return what the schedule depends on."""
    return LoopSettings(
        num_steps=plan.num_steps,
        groups_per_step=plan.groups_per_step,
        chunk_groups=plan.chunk_groups,
        max_staleness=plan.max_staleness,
        incarnation=0,
    )


def fleet_settings(plan: SimulationPlan) -> FleetSettings:
    """Return what the fleet goes by; where nothing fails it asks no actor how far it is.

    Nor is one then stuck for having said nothing.
    """
    listens = not plan.failures.is_none or plan.deadly_prompts or plan.dead_actors
    return FleetSettings(
        deadline_s=plan.deadline_s,
        stall_s=plan.stall_s if listens else QUIET_S,
        heartbeat_s=plan.heartbeat_s if listens else QUIET_S,
        start_deadline_s=plan.start_deadline_s,
        crash_budget=plan.crash_budget,
        crash_window_s=plan.crash_window_s,
        prefetch=plan.prefetch,
        autoscale=plan.autoscale,
    )
