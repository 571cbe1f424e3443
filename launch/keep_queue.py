"""Which groups are written when: the queue before the writer, a state machine with a clock.

    add -> waiting -> (at most `max_in_flight`) begun -> done | failed
                          \\-> late: counted once, and still on its way

Touches no disk and no process; `group_keeper` does what it says.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from rlvid.config.storage import StorageConfig
from rlvid.rewards.scoring import GroupScores

GIVE_UP_AFTER = 4.0
"""A write that takes this many deadlines has a stopped writer, which is replaced."""


@dataclass(slots=True, eq=False)
class KeepItem:
    """A group that is to be written."""

    group_id: str
    step: int
    group: Any
    """Object reference of the RolloutGroup; held until it is written or no longer wanted."""
    scores: GroupScores
    call: Any = None
    """Object reference of what the writer will answer."""
    began: float = 0.0
    is_late: bool = False


@dataclass(slots=True)
class KeepCounts:
    """Since the last reading."""

    written: int = 0
    failed: int = 0
    late: int = 0
    num_bytes: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class KeepQueue:
    """Groups on their way to the disk, in the order they came."""

    config: StorageConfig
    waiting: deque[KeepItem] = field(default_factory=deque)
    in_flight: dict[int, KeepItem] = field(default_factory=dict)
    """By call number."""
    counts: KeepCounts = field(default_factory=KeepCounts)
    _num_calls: int = 0

    @property
    def backlog(self) -> int:
        """Groups that are not on the disk yet."""
        return len(self.waiting) + len(self.in_flight)

    def add(self, item: KeepItem) -> None:
        self.waiting.append(item)

    def begin(self, now: float) -> list[tuple[int, KeepItem]]:
        """Return (call number, group) of every write that is to start now."""
        begun = []
        while self.waiting and len(self.in_flight) < self.config.max_writes_in_flight:
            item = self.waiting.popleft()
            item.began = now
            self._num_calls += 1
            self.in_flight[self._num_calls] = item
            begun.append((self._num_calls, item))
        return begun

    def done(self, call: int, num_bytes: int, now: float) -> KeepItem | None:
        """End a write; None when the call was given up before."""
        item = self.in_flight.pop(call, None)
        if item is not None:
            self.counts.written += 1
            self.counts.num_bytes += num_bytes
            self.counts.seconds += now - item.began
        return item

    def failed(self, call: int) -> KeepItem | None:
        item = self.in_flight.pop(call, None)
        self.counts.failed += item is not None
        return item

    def newly_late(self, now: float) -> list[KeepItem]:
        """Return the writes that have just passed the deadline, each once."""
        late = [
            item
            for item in self.in_flight.values()
            if not item.is_late and now - item.began > self.config.disk_deadline_s
        ]
        for item in late:
            item.is_late = True
        self.counts.late += len(late)
        return late

    def is_stopped(self, now: float) -> bool:
        """True when the oldest write shows that its writer will not answer."""
        patience_s = GIVE_UP_AFTER * self.config.disk_deadline_s
        return any(now - item.began > patience_s for item in self.in_flight.values())

    def begin_again(self) -> None:
        """The writer is gone: what it had waits again, first."""
        self.waiting.extendleft(reversed(self.in_flight.values()))
        self.in_flight.clear()

    def fail_all(self) -> list[KeepItem]:
        """There is no writer any more: return everything that was not written."""
        items = [*self.in_flight.values(), *self.waiting]
        self.counts.failed += len(items)
        self.in_flight.clear()
        self.waiting.clear()
        return items

    def drop_before(self, step: int) -> int:
        """Forget waiting groups of steps before `step`; nobody will want them. Return how many."""
        kept = deque(item for item in self.waiting if item.step >= step)
        dropped = len(self.waiting) - len(kept)
        self.waiting = kept
        return dropped

    def take_counts(self) -> KeepCounts:
        """Return the counts and start new ones."""
        counts, self.counts = self.counts, KeepCounts()
        return counts
