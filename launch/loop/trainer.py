"""The learner's side of the loop: opens steps, feeds chunks, publishes, reports finished steps.

    open step t      once version t - max_staleness is published: its groups are issued
    feed             chunks of the lowest unfinished step, in order, as their groups settle
    publish t + 1    queued right behind the last chunk, so the learner waits for no round trip
    next             the chunks of step t + 1 follow at once, unless something is due after step t

At max_staleness 0 nothing of step t + 1 exists before version t + 1 is out: synchronous training is
the same code. One thread; only `pump` waits, and only for news.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from rlvid.algorithms.score_table import RewardTable
from rlvid.launch.groups import ScoredGroup
from rlvid.launch.ledger import NO_SPREAD, Ledger
from rlvid.launch.loop.line import GroupLine, Issue
from rlvid.launch.loop.ports import Clock, Learner, Pending, Published, Rollouts
from rlvid.launch.loop.schedule import (
    MAX_GROUPS,
    MAX_STEPS,
    Chunk,
    chunks_of,
    steps_to_open,
    training_group_id,
)
from rlvid.records import StepReport, WeightsManifest


class EvaluationCutError(RuntimeError):
    """The run was told to stop, and an evaluation could not be finished in the time left."""


IDLE_S = 0.5
"""Longest sleep without news: deadlines are looked at this often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """What the schedule depends on."""

    num_steps: int
    groups_per_step: int
    chunk_groups: int
    """Groups of a chunk, `schedule.chunk_size`."""
    max_staleness: int
    incarnation: int
    """Learner starts in the run so far."""

    def __post_init__(self) -> None:
        _check_range("grpo.num_steps", self.num_steps, 1, MAX_STEPS)
        _check_range("rollout.groups_per_step", self.groups_per_step, 1, MAX_GROUPS)
        _check_range("rollout.max_staleness", self.max_staleness, 0, MAX_STEPS)
        _check_range("learner.chunk_groups", self.chunk_groups, 1, self.groups_per_step)


def _check_range(path: str, value: int, low: int, high: int) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{path} must be from {low} to {high}, got {value}; set it within them")


@dataclass(slots=True, kw_only=True)
class Batch:
    """One step on its way through the learner."""

    step: int
    opened_s: float
    """Clock when feeding began, which is when the step before had been fed."""
    chunks: deque[Chunk]
    """Not handed over yet."""
    num_settled: int = 0
    """Groups of the first of them that are ready or dropped, counted up to one that is not."""
    groups: list[ScoredGroup] = field(default_factory=list)
    calls: deque[Pending[StepReport | None]] = field(default_factory=deque)
    fed_s: float = 0.0
    """Clock when the last chunk was handed over."""
    report: StepReport | None = None
    reported_s: float = 0.0
    publish: Pending[Published] | None = None
    manifest: WeightsManifest | None = None
    published_s: float = 0.0


class Steps(Protocol):
    """What the loop asks of the phase."""

    def issues(self, step: int) -> Sequence[Issue]:
        """Return the step's groups in order of position."""
        ...

    def restore(self, issue: Issue) -> ScoredGroup | None:
        """Return a group that was ready before a restart; None when it is no longer at hand."""
        ...

    def reward(self, chunk: Chunk, groups: Sequence[ScoredGroup]) -> RewardTable:
        """Return what to credit a chunk's groups with."""
        ...

    def before_update(self, batch: Batch) -> None:
        """Look at a whole batch before its last chunk goes to the learner; may raise."""
        ...

    def is_barrier(self, step: int) -> bool:
        """Return whether the learner must rest after `step`, for an evaluation or a checkpoint."""
        ...


class Trainer:
    """Drives the learner through the steps of a phase."""

    def __init__(
        self,
        settings: LoopSettings,
        *,
        first_step: int,
        steps: Steps,
        line: GroupLine,
        rollouts: Rollouts,
        learner: Learner,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._steps = steps
        self._line = line
        self._rollouts = rollouts
        self._learner = learner
        self._ledger = ledger
        self._clock = clock
        self.on_tick: Callable[[], None] = lambda: None
        """Called once in every turn of `pump`, whatever it waits for."""
        self.version = first_step
        """The newest published."""
        self._next_open = first_step
        self._next_feed = first_step
        self._batches: deque[Batch] = deque()
        """Fed or being fed, not finished; the learner has them in this order."""
        self._rests = True
        """True until the first call for a batch, and between a barrier's step and the next one:
        what the actors hold is what is evaluated, and nothing is trained meanwhile."""
        self._stops_at: float | None = None
        self._is_published = False
        """Whether this incarnation of the learner has published; before, there is nothing that a
        step's groups may be sampled with: actors hold versions of the time after it."""

    # What the phase calls

    def publish_first(self) -> WeightsManifest:
        """Publish the policy that the first step samples with."""
        call = self._learner.begin_publish(self.version)
        self.pump(call.poll)
        manifest, payload = call.result()
        self._hand_on(manifest, payload)
        return manifest

    def next_batch(self) -> Batch | None:
        """Run the loop until the lowest unfinished step is trained and published.

        Returns:
            The step's batch; None when the run was told to stop and nothing more will finish.
        """
        self._rests = False
        self.pump(self._has_news)
        if not self._batches or self._batches[0].manifest is None:
            return None
        batch = self._batches.popleft()
        self._rests = self._steps.is_barrier(batch.step)
        return batch

    def stop(self, seconds: float) -> None:
        """Begin no further step, and give the one that is being fed `seconds` to finish."""
        self._stops_at = self._clock.now() + seconds

    @property
    def is_stopping(self) -> bool:
        return self._stops_at is not None

    @property
    def has_half_fed(self) -> bool:
        """Return whether the learner holds part of a batch that will not be completed."""
        return any(batch.chunks and batch.chunks[0].first for batch in self._batches)

    def rewind(self, step: int, learner: Learner, *, incarnation: int) -> None:
        """Go on with another learner that stands before `step`.

        Groups on their way go on meanwhile; others are issued once the learner has published. The
        ledger has been rewound.
        """
        self._learner = learner
        self._settings = replace(self._settings, incarnation=incarnation)
        self._batches.clear()
        self._next_open = self._next_feed = self.version = step
        self._rests, self._is_published = True, False

    def run_issues(self, issues: Sequence[Issue]) -> list[ScoredGroup]:
        """Have groups of an evaluation sampled and scored, and return them in order.

        Raises:
            EvaluationCutError: the run was told to stop, and what time it gave for the work in hand
                is over; the groups are forgotten, so that they can be issued again.
        """
        wanted = [issue.task.group_id for issue in issues]
        self._line.forget(wanted)  # of an attempt that ended with its driver or learner
        for issue in issues:
            self._line.issue(issue)

        def is_under_way() -> bool:
            return any(self._line.is_on_its_way(group_id) for group_id in wanted)

        self.pump(lambda: not is_under_way() or self._is_over_time())
        if is_under_way():
            self._line.forget(wanted)
            raise EvaluationCutError("the run stops, an evaluation was cut short")
        return self._line.take(wanted)

    def drain(self, seconds: float) -> None:
        """Issue and feed nothing more; give what is on its way `seconds` to become ready.

        The learner stays where it is, since a checkpoint of just that comes next.
        """
        self._stops_at = self._clock.now()
        self._batches.clear()
        end = self._clock.now() + seconds
        self.pump(lambda: not any(self._line.in_flight()) or self._clock.now() >= end)

    def pump(self, until: Callable[[], bool]) -> None:
        """Turn the loop until the condition holds; sleeps when nothing moves."""
        while not until():
            moved = self._line.poll()
            moved = self._open_steps() or moved
            moved = self._feed() or moved
            moved = self._harvest() or moved
            self.on_tick()
            if not moved and not until():
                self._clock.wait(IDLE_S)

    @property
    def waits_for(self) -> str:
        """Return what the learner waits for: "" when it works, else "rewards" or "rollouts".

        "rewards" when scores are all that is missing of its next chunk, whatever else goes on.
        """
        if any(batch.calls or batch.publish for batch in self._batches):
            return ""
        if not self._batches or not self._batches[-1].chunks:
            return "rollouts"
        whom = "rollouts"
        batch = self._batches[-1]
        for group_id in batch.chunks[0].ids_from(batch.num_settled):
            if self._line.is_being_scored(group_id):
                whom = "rewards"
            elif self._line.is_on_its_way(group_id):
                return "rollouts"
        return whom

    # The turns of the loop

    def _open_steps(self) -> bool:
        if self._stops_at is not None or not self._is_published:
            return False
        steps = steps_to_open(
            self._next_open,
            self.version,
            max_staleness=self._settings.max_staleness,
            num_steps=self._settings.num_steps,
        )
        for step in steps:
            known = self._ledger.states_of_step(step)
            for issue in self._steps.issues(step):
                self._open(issue, known.get(issue.task.group_id))
            self._next_open = step + 1
        return bool(steps)

    def _open(self, issue: Issue, state: str | None) -> None:
        """Issue a group, unless a restart finds it on its way, ready or dropped."""
        group_id = issue.task.group_id
        if state == "ready" and not self._line.has(group_id):
            restored = self._steps.restore(issue)
            if restored is not None:
                self._line.restore(restored)
                return
            self._ledger.expire(group_id)
            state = "planned"
        if state in (None, "planned"):
            self._line.issue(issue, is_planned=state is not None)

    def _has_news(self) -> bool:
        """A step is done, or the run stops and the one in hand will not be."""
        if self._batches and self._batches[0].manifest is not None:
            return True
        if self._stops_at is None:
            return False
        is_fed = bool(self._batches) and not self._batches[0].chunks
        return not is_fed and (not self._batches or self._is_over_time())

    def _is_over_time(self) -> bool:
        return self._stops_at is not None and self._clock.now() >= self._stops_at

    def _feed(self) -> bool:
        moved = False
        while (batch := self._feeding()) is not None and self._is_settled(batch):
            self._send(batch, batch.chunks.popleft())
            batch.num_settled = 0
            moved = True
        return moved

    def _feeding(self) -> Batch | None:
        """Return the batch whose next chunk is awaited; begins the next step where it may."""
        if self._batches and self._batches[-1].chunks:
            return self._batches[-1]
        if self._next_feed >= self._next_open or self._stops_at is not None:
            return None
        if self._rests or (self._batches and self._steps.is_barrier(self._batches[-1].step)):
            return None
        settings = self._settings
        batch = Batch(
            step=self._next_feed,
            opened_s=self._clock.now(),
            chunks=deque(
                chunks_of(
                    self._next_feed,
                    groups_per_step=settings.groups_per_step,
                    chunk_groups=settings.chunk_groups,
                )
            ),
        )
        self._batches.append(batch)
        self._next_feed += 1
        return batch

    def _is_settled(self, batch: Batch) -> bool:
        """Return whether no group of the next chunk is on its way; each is looked at once."""
        chunk = batch.chunks[0]
        while batch.num_settled < chunk.num_groups:
            position = chunk.first + batch.num_settled
            if self._line.is_on_its_way(training_group_id(chunk.step, position)):
                return False
            batch.num_settled += 1
        return True

    def _send(self, batch: Batch, chunk: Chunk) -> None:
        groups = self._line.take(chunk.group_ids)
        batch.groups += groups
        if chunk.is_last:
            self._steps.before_update(batch)
        self._ledger.claim([group.task.group_id for group in groups])
        references = {group.task.group_id: group.group for group in groups}
        rewards = self._steps.reward(chunk, groups)
        batch.calls.append(self._learner.begin_chunk(references, rewards, chunk))
        if chunk.is_last:
            batch.fed_s = self._clock.now()
            batch.publish = self._learner.begin_publish(batch.step + 1)

    def _harvest(self) -> bool:
        """Take the learner's answers in order: the step's report, then its publish."""
        moved = False
        for batch in self._batches:
            while batch.calls and batch.calls[0].poll():
                report = batch.calls.popleft().result()
                moved = True
                if report is not None:
                    self._reported(batch, report)
            if batch.calls or batch.chunks or batch.publish is None or batch.manifest is not None:
                break
            if not batch.publish.poll():
                break
            manifest, payload = batch.publish.result()
            batch.manifest, batch.published_s = manifest, self._clock.now()
            self._hand_on(manifest, payload)
            moved = True
        return moved

    def _reported(self, batch: Batch, report: StepReport) -> None:
        batch.report, batch.reported_s = report, self._clock.now()
        trained = set(report.trained_group_ids)
        ids = [group.task.group_id for group in batch.groups]
        for group_id in ids:
            if group_id not in trained:
                self._ledger.drop(group_id, NO_SPREAD)
        self._ledger.consume([group_id for group_id in ids if group_id in trained])

    def _hand_on(self, manifest: WeightsManifest, payload: object) -> None:
        self._ledger.published(self._settings.incarnation, manifest.version, manifest.digest)
        self._rollouts.begin_publish(manifest, payload)
        self.version = manifest.version
        self._is_published = True
