"""The disk of a virtual run: scored groups that outlive learner and driver."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rlvid.launch.group_store import StoredGroupError
from rlvid.launch.groups import ScoredGroup
from rlvid.launch.loop.line import Issue


@dataclass(frozen=True, slots=True)
class Kept:
    """A group on the disk."""

    group_id: str


@dataclass(slots=True)
class VirtualKeeper:
    """Does for `launch.loop.recovery` what the process that writes groups does."""

    keeps: Callable[[], bool] = lambda: True
    """Whether a group gets there before the next crash; tests have it fail."""
    is_damaged: Callable[[], bool] = lambda: False
    _groups: dict[str, tuple[int, ScoredGroup]] = field(default_factory=dict)

    def keep(self, group: ScoredGroup, issue: Issue) -> None:
        if issue.trains and self.keeps():
            self._groups[group.task.group_id] = (issue.step, group)

    def flush(self, deadline_s: float) -> None:
        """All is written at once here."""

    def restore_from(self, checkpoint: Path, deadline_s: float) -> None:
        """Nothing is ever lost here of what a checkpoint has."""

    def index(self, deadline_s: float) -> dict[int, list[Kept]]:
        found: defaultdict[int, list[Kept]] = defaultdict(list)
        for group_id, (step, _) in self._groups.items():
            found[step].append(Kept(group_id))
        return dict(found)

    def load(self, group_id: str, deadline_s: float) -> ScoredGroup:
        if group_id not in self._groups or self.is_damaged():
            raise StoredGroupError(f"group {group_id} is damaged")
        return self._groups[group_id][1]

    def drop_before(self, step: int) -> None:
        for group_id, (at, _) in list(self._groups.items()):
            if at < step:
                del self._groups[group_id]
