"""The groups in the pool: what waits of them, what was answered, who is done.

add --> decoder's lane --> queue_clips --> a lane each scorer --> settle or miss --> take_done
                                |  known in the cache ------------^
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlvid.rewards.base import RewardError, RewardTimeoutError
from rlvid.rewards.decoding import ClipInfo
from rlvid.rewards.dispatch.known_scores import KnownScores
from rlvid.rewards.dispatch.lane import Lane, QueueItem
from rlvid.rewards.dispatch.metrics import PoolMetrics
from rlvid.rewards.dispatch.pool_group import PoolGroup
from rlvid.rewards.dispatch.processes import DECODER, Finished


class GroupBook:
    """Every group from its submission until all of its scores are there, or are missing."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        known: KnownScores,
        metrics: PoolMetrics,
        *,
        deadline_s: float,
    ) -> None:
        """`lanes` and `known` are the dispatcher's own; a group may be scored for `deadline_s`."""
        self._lanes = lanes
        self._known = known
        self._metrics = metrics
        self._deadline_s = deadline_s
        self.groups: dict[int, PoolGroup] = {}
        """By ticket."""

    def add(self, group: PoolGroup, now: float) -> None:
        """Take a group; its clips are decoded first unless they came with it."""
        self.groups[group.ticket] = group
        if group.labels:
            self._metrics.submitted(now)
        if group.info is not None:
            self._queue_clips(group, now)
        else:
            self._queue_decoding(group, now)

    def clips_are(self, group: PoolGroup, info: ClipInfo, frames: Any, now: float) -> None:
        """The group's clips are there, as `frames`: its scorers are asked for what they lack."""
        group.clips_are(info, frames, now)
        self._queue_clips(group, now)

    def is_no_video(self, group: PoolGroup, reason: str, now: float) -> None:
        """A file somebody sent cannot be decoded: all of its scores are missing."""
        assert group.promised is not None, "a group of this run that is none stops the run"
        group.clips_are(group.promised, None, now)
        self._miss_all(group, reason)

    def clips_lost(self, ticket: int, now: float) -> None:
        """The clips of a group are gone with their node: decode it once more."""
        group = self.groups.get(ticket)
        if group is None or group.frames is None:  # another call of the group said so before
            return
        self._withdraw(ticket)
        if group.payload is None:
            self._miss_all(group, "its clips were lost with the node that held them")
            return
        group.frames = None
        self._queue_decoding(group, now)

    def settle(self, label: str, item: QueueItem, value: float | None, error: str = "") -> None:
        """Note the score of a clip; None is missing for the reason `error`."""
        group = self.groups.get(item.ticket)
        if group is None or group.info is None:
            return
        if value is None:
            self._metrics.count(label, "errors")
        group.settle(label, group.info.indices[item.row], value, error)

    def is_wanted(self, service: str, item: QueueItem) -> bool:
        """Return whether to ask for it again: clips that are being decoded anew come back so."""
        group = self.groups.get(item.ticket)
        return group is not None and (service == DECODER or group.frames is not None)

    def expire(self, now: float) -> None:
        """Count what groups lack as missing whose time to be scored is over."""
        for group in self.groups.values():
            if group.info is None or now - group.scoring_since < self._deadline_s:
                continue
            reason = (
                f"{RewardTimeoutError.__name__}: no score within rewards.deadline_s of "
                f"{self._deadline_s:g} s"
            )
            self._withdraw(group.ticket, group.labels)
            for label in group.labels:
                if group.lacking(label):
                    self._metrics.count(label, "timeouts")
            self._miss_all(group, reason)

    def expiries(self) -> list[float]:
        """Return when each group that is being scored expires."""
        scored = [group for group in self.groups.values() if group.info is not None]
        return [group.scoring_since + self._deadline_s for group in scored]

    def take_done(self, now: float) -> list[Finished]:
        """Give out the groups that lack nothing; what still waits of them is withdrawn."""
        done = [group for group in self.groups.values() if group.is_done]
        for group in done:
            del self.groups[group.ticket]
            self._withdraw(group.ticket)
            if group.labels:
                self._metrics.group_done(now)
        return [
            Finished(ticket=group.ticket, scores=group.scores(), frames=group.frames)
            for group in done
        ]

    def _queue_decoding(self, group: PoolGroup, now: float) -> None:
        item = QueueItem((group.ticket, 0), None, 0, (), "", now)
        self._lanes[DECODER].add([item])

    def _queue_clips(self, group: PoolGroup, now: float) -> None:
        """Give the clips to every scorer that has not answered for them; known scores are taken."""
        info = group.info
        assert info is not None, "only a group with clips can be scored"
        kind = (info.fps, info.num_frames, info.height, info.width)
        for label in group.labels:
            rows = group.lacking(label)
            try:
                self._known.check(label, info, is_submitted=group.promised is not None)
            except RewardError as error:
                if group.promised is None:
                    raise
                self._miss(group, label, f"{error}")  # a file somebody sent, not this run's clips
                continue
            keys = [self._known.key(label, info, row) for row in rows]
            unknown = []
            for row, key, value in zip(rows, keys, self._known.look_up(label, keys), strict=True):
                item = QueueItem((group.ticket, row), info.prompt, row, kind, key, now)
                if value is None:
                    unknown.append(item)
                else:
                    self.settle(label, item, value)
            self._lanes[label].add(unknown)
            self._metrics.queued(label, len(self._lanes[label]))

    def _withdraw(self, ticket: int, labels: tuple[str, ...] | None = None) -> None:
        """Take what waits of a group out of these lanes, or all."""
        for label, lane in self._lanes.items():
            if labels is None or label in labels:
                lane.remove([item for item in lane.items if item.ticket == ticket])

    def _miss_all(self, group: PoolGroup, reason: str) -> None:
        for label in group.labels:
            self._miss(group, label, reason)

    def _miss(self, group: PoolGroup, label: str, reason: str) -> None:
        assert group.info is not None, "who is missing must be known"
        for row in group.lacking(label):
            self._metrics.count(label, "errors")
            group.settle(label, group.info.indices[row], None, reason)
