"""Groups on their way from plan to ready: leased, sampled, scored; in training and evaluation.

    issue -> rollouts -> rewards -> ready -> taken by the learner or an evaluation
               | lost, late or too old: leased again, same seeds
               +-- its prompt cost too many actors: dropped, the prompt quarantined

One thread calls it; no call waits. Every move is in the ledger first or with it, so what a crash
leaves there is what was.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rlvid.actors.pool import LostGroup, RolloutLostError, SampledGroup
from rlvid.launch.groups import ScoredGroup
from rlvid.launch.ledger import QUARANTINED, Ledger
from rlvid.launch.loop.ports import Rewards, Rollouts
from rlvid.records import GroupTask

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """A group that was given out, and on what terms."""

    task: GroupTask
    step: int
    min_version: int = -1
    """Older weights must not sample it."""
    max_version: int | None = None
    """Nor newer ones, which actors hold for a moment after the learner went back to a checkpoint:
    a step cannot learn from what was sampled after it."""
    scorers: tuple[str, ...] | None = None
    """Labels of those that are asked; None asks all."""
    trains: bool = True
    """False in an evaluation, which needs every group: there a deadly prompt ends the run."""


@dataclass(slots=True)
class LineCounts:
    """What went wrong on the way since it was last asked."""

    lost: int = 0
    """Groups whose actor was lost; they were leased again."""
    late_answers: int = 0
    """Refused: their lease had been given to another actor."""
    stale_answers: int = 0
    """Refused: sampled with weights older than the group may have."""
    quarantined: int = 0
    """Groups dropped since their prompt cost too many actors."""
    wasted_s: float = 0.0
    """Seconds of sampling that were refused."""

    def metrics(self) -> dict[str, float]:
        """Return them by the names of the metrics table."""
        return {
            "rollout/groups/reissued": float(self.lost + self.stale_answers),
            "rollout/groups/refused": float(self.late_answers),
            "rollout/groups/stale": float(self.stale_answers),
            "rollout/groups/dropped": float(self.quarantined),
        }


@dataclass(slots=True)
class GroupLine:
    """Every group between issue and consumption."""

    rollouts: Rollouts
    rewards: Rewards
    ledger: Ledger
    lease_s: float
    max_deaths_per_prompt: int
    on_ready: Callable[[ScoredGroup, Issue], None] = lambda group, issue: None
    on_quarantine: Callable[[str], None] = lambda reason: None
    """Hears why a prompt was taken out, once its group is dropped; may raise."""
    counts: LineCounts = field(default_factory=LineCounts)
    _open: dict[str, Issue] = field(default_factory=dict)
    _scoring: dict[int, tuple[str, SampledGroup]] = field(default_factory=dict)
    _being_scored: set[str] = field(default_factory=set)
    _ready: dict[str, ScoredGroup] = field(default_factory=dict)
    _deaths: Counter[str] = field(default_factory=Counter)
    _quarantined: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._quarantined = self.ledger.quarantined()

    # In and out

    def issue(self, issue: Issue, *, is_planned: bool = False) -> None:
        """Give a group out; one of a quarantined prompt is dropped instead.

        Args:
            is_planned: the ledger has it from before a crash.
        """
        task = issue.task
        if not is_planned:
            self.ledger.plan(task.group_id, issue.step, task.prompt.prompt_id, trains=issue.trains)
        if issue.trains and task.prompt.prompt_id in self._quarantined:
            self._drop(task)
            return
        self._lease(issue)

    def restore(self, group: ScoredGroup) -> None:
        """Take a group that a crash left ready."""
        self._ready[group.task.group_id] = group

    def has(self, group_id: str) -> bool:
        """Return whether the group is ready."""
        return group_id in self._ready

    def is_on_its_way(self, group_id: str) -> bool:
        """Return whether the group is issued and not ready yet."""
        return group_id in self._open

    def take(self, group_ids: Sequence[str]) -> list[ScoredGroup]:
        """Hand over those of the groups that are ready, in the order given."""
        return [self._ready.pop(group_id) for group_id in group_ids if group_id in self._ready]

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Prompt id to reason."""
        return self._quarantined

    def in_flight(self) -> Iterator[str]:
        """Yield the ids of groups that actors or scorers hold."""
        return iter(self._open)

    def ready_ids(self) -> Iterator[str]:
        """Yield the ids of groups that wait to be taken."""
        return iter(self._ready)

    @property
    def num_scoring(self) -> int:
        return len(self._scoring)

    def is_being_scored(self, group_id: str) -> bool:
        """Return whether the group is sampled and waits for its scores."""
        return group_id in self._being_scored

    def forget_evaluations(self) -> None:
        """Let go of evaluation groups, which a rewound ledger does not know any more."""
        for group_id, issue in list(self._open.items()):
            if not issue.trains:
                del self._open[group_id]

    def forget(self, group_ids: Sequence[str]) -> None:
        """Let go of groups of an evaluation that is made again; their answers will be refused."""
        for group_id in group_ids:
            self._open.pop(group_id, None)
            self._ready.pop(group_id, None)
        self.ledger.forget(group_ids)

    def take_counts(self) -> LineCounts:
        """Return what went wrong since the last call."""
        counts, self.counts = self.counts, LineCounts()
        return counts

    def drop_all(self, reason: str) -> None:
        """End every group that was not consumed; their answers will be refused."""
        for group_id in [*self._open, *self._ready]:
            self.ledger.drop(group_id, reason)
        self._open.clear()
        self._ready.clear()

    # News

    def poll(self) -> bool:
        """Move every group that can be moved; return whether any was.

        Raises:
            RolloutLostError: a group of an evaluation cost too many actors.
            RewardError: a scorer broke its contract or the pool gave up.
        """
        moved = False
        for answer in self.rollouts.collect(0.0):
            moved = True
            if isinstance(answer, LostGroup):
                self._lost(answer)
            else:
                self._sampled(answer)
        for ticket, scores in self.rewards.collect(0.0):
            moved = True
            group_id, sampled = self._scoring.pop(ticket)
            self._being_scored.discard(group_id)
            issue = self._open.get(group_id)
            if issue is None or issue.task.lease_id != sampled.summary.lease_id:
                continue  # the run ended it meanwhile, or an evaluation is made again
            del self._open[group_id]
            self.ledger.ready(group_id)
            group = ScoredGroup(
                task=issue.task, group=sampled.group, summary=sampled.summary, scores=scores
            )
            self._ready[group_id] = group
            self.on_ready(group, issue)
        return moved

    # Inside

    def _sampled(self, answer: SampledGroup) -> None:
        summary = answer.summary
        issue = self._open.get(summary.group_id)
        if issue is None or not self.ledger.sampled(
            summary.group_id, summary.lease_id, summary.actor_id, summary.policy_version
        ):
            self.counts.late_answers += 1
            self.counts.wasted_s += summary.sample_s
            logger.warning("refused a late answer group=%s", summary.group_id)
            return
        newest = issue.max_version
        is_from_later = newest is not None and summary.policy_version > newest
        if summary.policy_version < issue.min_version or is_from_later:
            self.counts.stale_answers += 1
            self.counts.wasted_s += summary.sample_s
            logger.warning(
                "refused a stale answer group=%s version=%d expected=%d..%s",
                summary.group_id,
                summary.policy_version,
                issue.min_version,
                newest,
            )
            self.ledger.expire(summary.group_id)
            self._lease(issue)
            return
        self._deaths.pop(issue.task.prompt.prompt_id, None)  # the actors died of something else
        ticket = self.rewards.submit(answer.group, issue.scorers)
        self._scoring[ticket] = (summary.group_id, answer)
        self._being_scored.add(summary.group_id)
        self.ledger.scoring(summary.group_id)

    def _lost(self, lost: LostGroup) -> None:
        issue = self._open.get(lost.group_id)
        if issue is None or not self.ledger.is_leased(lost.group_id, lost.lease_id):
            return
        self.counts.lost += 1
        self.ledger.expire(lost.group_id)
        task = issue.task
        if not lost.cause.blames_prompt:
            self._lease(issue)
            return
        self._deaths[task.prompt.prompt_id] += 1
        if self._deaths[task.prompt.prompt_id] < self.max_deaths_per_prompt:
            logger.warning("leasing group=%s again reason=%s", lost.group_id, lost.reason)
            self._lease(issue)
            return
        reason = (
            f"group {lost.group_id} (prompt {task.prompt.text!r}) lost "
            f"{self.max_deaths_per_prompt} actors, the last one: {lost.reason}"
        )
        if not issue.trains:
            raise RolloutLostError(
                f"rollout: {reason}. Raise rollout.deadline_s if it is only slow"
            )
        self._quarantined[task.prompt.prompt_id] = reason
        self.ledger.quarantine(task.prompt.prompt_id, reason)
        logger.error("quarantined a prompt: %s", reason)
        del self._open[lost.group_id]
        self._drop(task)
        self.on_quarantine(reason)

    def _drop(self, task: GroupTask) -> None:
        self.counts.quarantined += 1
        self.ledger.drop(task.group_id, QUARANTINED)

    def _lease(self, issue: Issue) -> None:
        group_id = issue.task.group_id
        lease_id = self.ledger.lease(group_id, self.lease_s)
        issue = replace(issue, task=replace(issue.task, lease_id=lease_id))
        self._open[group_id] = issue
        self.rollouts.submit(
            issue.task, min_version=issue.min_version, max_version=issue.max_version
        )
