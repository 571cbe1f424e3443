"""What a run shows while it goes on, and the orders it takes: timeline, status file, inbox.

Looked after once in every turn of the loop. Nothing here decides anything; an order is handed to
the pool it concerns.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rlvid.config import Recipe
from rlvid.launch.control.channel import ControlInbox, open_inbox
from rlvid.launch.control.commands import Command, ScaleCommand
from rlvid.launch.control.prometheus import MetricsPublisher, metrics_url, open_publisher
from rlvid.launch.control.status import (
    MAX_EVENTS,
    MAX_ROWS,
    ActorStatus,
    LearnerStatus,
    RunEvent,
    RunStatus,
    ScorerStatus,
    StatusWriter,
)
from rlvid.launch.loop.line import LineCounts
from rlvid.launch.loop.trainer import Batch, Trainer
from rlvid.launch.phases.base import PhaseContext
from rlvid.launch.preemption import Preempted, Preemption
from rlvid.launch.roles import SamplingRoles
from rlvid.launch.utilisation import Utilisation, open_utilisation
from rlvid.observability.timeline import Timeline, open_timeline

logger = logging.getLogger(__name__)

RATES = ("idle/", "overlap/", "mfu/", "ft/", "waste/", "reward_pool/exposed_tail/")
"""Metrics that the status shows as they are."""
SHOWN_STEPS = 40
"""Steps whose reward and staleness the status shows."""


@dataclass(slots=True, kw_only=True)
class Live:
    """The outside view of a GRPO run."""

    recipe: Recipe
    phase: str
    sampling: SamplingRoles
    trainer: Trainer
    timeline: Timeline
    writer: StatusWriter
    inbox: ControlInbox
    publisher: MetricsPublisher
    utilisation: Utilisation
    preemption: Preemption | None
    state: str = "starting"
    """What the status says: starting, running, evaluating, draining, stopped, done or failed."""
    started_s: float = field(default_factory=time.time)
    step: int = 0
    _rewards: deque[float] = field(default_factory=lambda: deque(maxlen=SHOWN_STEPS))
    _staleness: deque[Counter[int]] = field(default_factory=lambda: deque(maxlen=SHOWN_STEPS))
    _step_s: deque[float] = field(default_factory=lambda: deque(maxlen=SHOWN_STEPS))
    _events: deque[RunEvent] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS))
    _row: Mapping[str, float] = field(default_factory=dict)
    _heldout: float | None = None
    _seen: set[str] = field(default_factory=set)

    # Called by the loop

    def tick(self) -> None:
        """Bring timeline and status up to date, and do what was ordered."""
        now = self.sampling.clock.now()
        self._note_roles(now)
        for command in self.inbox.poll():
            self._obey(command)
        if self.writer.is_due(now):
            self.writer.write(self._status(), now)
        self.timeline.flush_if_due()

    def step_done(self, batch: Batch, counts: LineCounts) -> dict[str, float]:
        """Close the step's window of the timeline and return its metrics."""
        assert batch.report is not None, "the step is trained"
        staleness = Counter(batch.step - group.summary.policy_version for group in batch.groups)
        refused = counts.late_answers + counts.stale_answers
        if refused:
            self.timeline.wasted(
                "refused",
                videos=refused * self.recipe.rollout.group_size,
                seconds=counts.wasted_s,
            )
        metrics = self.timeline.step_done(
            batch.step + 1,
            batch.published_s,
            videos=len(batch.report.trained_group_ids) * self.recipe.rollout.group_size,
            staleness=staleness,
        )
        self._staleness.append(staleness)
        self.step = batch.step + 1
        self.sampling.rollouts.note_learner_idle(metrics.get("idle/learner/frac", 0.0))
        return metrics

    def mfu(self, row: Mapping[str, float]) -> dict[str, float]:
        """Return the step's MFU, for roles whose devices' peaks are known."""
        devices = [actor.device for actor in self.sampling.rollouts.actors() if actor.is_open]
        wall_s = row["time/step/seconds"]
        return self.utilisation.metrics(row, wall_s=wall_s, rollout_devices=devices)

    def show(self, row: Mapping[str, float]) -> None:
        """Take a step's finished row of metrics into the view."""
        self._row = row
        self.publisher.publish(row, self.sampling.clock.now())
        if "rollout/reward/mean" in row:
            self._rewards.append(row["rollout/reward/mean"])
        if "time/step/seconds" in row:
            self._step_s.append(row["time/step/seconds"])
        self._heldout = row.get("heldout/reward/mean", self._heldout)

    def note(self, kind: str, text: str) -> None:
        """Add to the list of what happened."""
        self._events.append(RunEvent(time_s=time.time(), kind=kind, text=text))

    def close(self, state: str) -> None:
        """Say how it ended, and refuse further orders."""
        self.state = state
        now = self.sampling.clock.now()
        self.timeline.close(now)
        self.writer.write(self._status(), now)
        self.inbox.close()

    # Inside

    def _note_roles(self, now: float) -> None:
        waits_for = self.trainer.waits_for
        if waits_for:
            self.timeline.waits("learner", waits_for, now)
        else:
            self.timeline.busy("learner", "learn", now)
        if self.sampling.line.num_scoring:
            self.timeline.busy("rewards", "score", now)
        else:
            self.timeline.waits("rewards", "rollouts", now)
        present = set()
        for actor in self.sampling.rollouts.actors():
            row = f"rollout/{actor.actor_id}"
            if not actor.is_open:
                continue
            present.add(row)
            if actor.group_id:
                self.timeline.busy(row, "sample", now, group=actor.group_id)
            else:
                self.timeline.waits(row, "learner", now)
        for row in self._seen - present:
            self.timeline.away(row, now)
        self._seen = present

    def _obey(self, command: Command) -> None:
        if not isinstance(command, ScaleCommand):
            if self.preemption is None:
                self.inbox.answer(command, ok=False, message="this run cannot drain: no listener")
                return
            self.preemption.request(f"drain, asked for by {command.sender}")
            self.inbox.answer(command, ok=True, message="draining, then a checkpoint")
            return
        try:
            for label, replicas in command.scorers.items():
                self.sampling.rewards.scale(label, replicas)
            if command.rollouts is not None:
                self.sampling.rollouts.scale(command.rollouts)
        except ValueError as error:
            self.inbox.answer(command, ok=False, message=str(error))
            return
        asked = [f"{n} replicas of {label}" for label, n in command.scorers.items()]
        asked += [f"{command.rollouts} rollout actors"] if command.rollouts is not None else []
        self.note("scale", f"to {', '.join(asked)}")
        self.inbox.answer(command, ok=True, message=f"scaling to {', '.join(asked)}")

    def _status(self) -> RunStatus:
        rollouts = self.sampling.rollouts
        actors = rollouts.actors()
        step_s = sum(self._step_s) / len(self._step_s) if self._step_s else None
        left = self.recipe.grpo.num_steps - self.step
        staleness = sum(self._staleness, Counter())
        return RunStatus(
            run=self.recipe.name,
            phase=self.phase,
            state=self.state,
            step=self.step,
            num_steps=self.recipe.grpo.num_steps,
            version=self.trainer.version,
            max_staleness=self.recipe.rollout.max_staleness,
            groups=self.sampling.ledger.by_state(),
            actors=tuple(
                ActorStatus(
                    actor_id=actor.actor_id,
                    state=actor.state,
                    doing=actor.group_id,
                    since_s=actor.since_s,
                    version=actor.version,
                )
                for actor in actors[:MAX_ROWS]
            ),
            actor_states=Counter(actor.state for actor in actors),
            actors_wanted=rollouts.num_actors,
            scorers=self._scorers(),
            learner=self._learner(),
            staleness=dict(staleness),
            rates={name: value for name, value in self._row.items() if name.startswith(RATES)},
            videos_per_s=self._row.get("rollout/videos/per_s"),
            step_s=step_s,
            reward_mean=self._rewards[-1] if self._rewards else None,
            rewards=tuple(self._rewards),
            heldout_reward=self._heldout,
            eta_s=step_s * left if step_s is not None else None,
            events=tuple(self._events),
            started_s=self.started_s,
        )

    def _scorers(self) -> tuple[ScorerStatus, ...]:
        row = self.sampling.rewards.metrics()
        return tuple(
            ScorerStatus(
                name=label,
                replicas=int(row.get(f"rewards/{label}/replicas", 0)),
                queue=int(row.get(f"rewards/{label}/queue_now", 0)),
                p95_s=row.get(f"rewards/{label}/latency_p95_s"),
                missing_frac=self._row.get(f"rewards/{label}/missing_frac"),
                errors=int(row.get(f"rewards/{label}/errors", 0)),
            )
            for label in (scorer.label for scorer in self.recipe.rewards.scorers)
        )

    def _learner(self) -> LearnerStatus:
        waits_for = self.trainer.waits_for
        return LearnerStatus(
            state="idle" if waits_for else "busy",
            doing=waits_for or f"step {self.step}",
            since_s=self.timeline.seconds_in_state("learner", self.sampling.clock.now()),
            num_ranks=self.recipe.learner.num_ranks,
            idle_frac=self._row.get("idle/learner/frac"),
        )


@contextmanager
def open_live(context: PhaseContext, sampling: SamplingRoles, trainer: Trainer) -> Iterator[Live]:
    """Begin to show the phase, and to take orders, until the block ends."""
    run_folder = context.folder.parent.parent
    live = Live(
        recipe=context.recipe,
        phase=context.folder.name,
        sampling=sampling,
        trainer=trainer,
        timeline=open_timeline(context.folder, now_s=sampling.clock.now()),
        writer=StatusWriter(run_folder),
        inbox=open_inbox(run_folder),
        publisher=open_publisher(context.recipe.name),
        utilisation=open_utilisation(context.recipe),
        preemption=context.preemption,
    )
    logger.info("watch with `rlvid top %s`; Prometheus scrapes %s", run_folder, metrics_url())
    ended = "failed"
    try:
        yield live
        ended = "done"
    except Preempted:
        ended = "stopped"
        raise
    finally:
        live.close(ended)
