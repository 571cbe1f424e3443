"""The queue of one service, a scorer or the decoder: what waits, and what makes a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from rlvid.config.rewards import ScorerConfig
from rlvid.records import Prompt
from rlvid.rewards.base import Serving
from rlvid.rewards.scoring import ItemId

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0


@dataclass(slots=True, eq=False)
class QueueItem:
    """One clip of one scorer, or one group to decode, on its way to an answer."""

    item_id: ItemId
    prompt: Prompt | None
    row: int
    kind: tuple[float, ...]
    """(fps, T, H, W): only clips of one kind fit in a batch."""
    cache_key: str
    entered: float
    num_attempts: int = 0
    not_before: float = 0.0
    avoid: int | None = None
    """Process at which it failed last."""
    goes_alone: bool = False
    """Its last batch ended its process; alone, it can take down nobody else's."""
    error: str = ""

    @property
    def ticket(self) -> int:
        return self.item_id[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneSettings:
    """How one service is run: the recipe's entry over what the scorer declares."""

    batch_size: int
    max_wait_s: float
    device: str
    num_replicas: int
    max_replicas: int
    deadline_s: float
    num_cpus: float
    num_gpus: float

    @classmethod
    def of(cls, config: ScorerConfig, serving: Serving) -> LaneSettings:
        def either(name: str) -> float:
            given = getattr(config, name)
            return getattr(serving, name) if given is None else given  # type: ignore[no-any-return]

        num_replicas = int(either("num_replicas"))
        most = config.max_replicas
        if most is None and config.num_replicas is None:
            most = serving.max_replicas
        return cls(
            batch_size=int(either("batch_size")),
            max_wait_s=either("max_wait_s"),
            device=config.device or serving.device,
            num_replicas=num_replicas,
            max_replicas=max(num_replicas, most or num_replicas),
            deadline_s=either("deadline_s"),
            num_cpus=either("num_cpus"),
            num_gpus=either("num_gpus"),
        )


@dataclass(slots=True, eq=False)
class Lane:
    """Waiting items of one service, first come first served but for those that back off."""

    service: str
    settings: LaneSettings
    config: ScorerConfig | None = None
    """The recipe's entry; None for the decoder."""
    takes_groups: bool = False
    """True for a group-wise scorer: a call is one whole group, whatever the batch size."""
    items: deque[QueueItem] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.items)

    def add(self, items: Iterable[QueueItem]) -> None:
        self.items.extend(items)

    def next_batch(
        self, now: float, *, process: int, has_other: bool, more_coming: bool, only_full: bool
    ) -> list[QueueItem]:
        """Take the items of the next call of `process` out of the queue; [] when none is due.

        Args:
            has_other: another process could take what failed at this one.
            more_coming: clips are on their way that could fill the batch.
            only_full: take a full batch or nothing, for a process that is still busy.
        """
        due = [
            item
            for item in self.items
            if item.not_before <= now and not (has_other and item.avoid == process)
        ]
        if not due:
            return []
        batch, is_full = self._batch(due)
        if only_full and batch[0].goes_alone:
            return []  # behind another call it could take down that one's answer
        if not is_full:
            waited = now - min(item.entered for item in batch)
            if only_full or (more_coming and waited < self.settings.max_wait_s):
                return []
        taken = {id(item) for item in batch}
        self.items = deque(item for item in self.items if id(item) not in taken)
        return batch

    def _batch(self, due: list[QueueItem]) -> tuple[list[QueueItem], bool]:
        first = due[0]
        if self.takes_groups:
            return [item for item in due if item.ticket == first.ticket], True
        if first.goes_alone:
            return [first], True
        fitting = [item for item in due if item.kind == first.kind and not item.goes_alone]
        batch = fitting[: self.settings.batch_size]
        return batch, len(batch) == self.settings.batch_size

    def next_due(self, now: float) -> float | None:
        """Return when waiting alone will change what is due; None when it will not."""
        times = [item.not_before for item in self.items if item.not_before > now]
        if self.items and self.settings.max_wait_s:
            times += [
                item.entered + self.settings.max_wait_s
                for item in self.items
                if item.entered + self.settings.max_wait_s > now
            ]
        return min(times, default=None)

    def remove(self, unwanted: Iterable[QueueItem]) -> None:
        gone = {id(item) for item in unwanted}
        self.items = deque(item for item in self.items if id(item) not in gone)


def backoff_s(num_attempts: int, jitter: float) -> float:
    """Return the wait before another attempt: doubling with each.

    Args:
        jitter: in [0, 1], drawn once a call, so that calls spread and the clips of one stay
            together.
    """
    longest = min(FIRST_BACKOFF_S * 2.0 ** (num_attempts - 1), LONGEST_BACKOFF_S)
    return longest * (0.5 + 0.5 * jitter)
