"""Has planned clips rendered by the actors, scored by the pool and written to disk, in a stream.

    planned -> rollout actors -> reward pool -> writer -> disk
               at most `groups_in_flight` prompts between the first arrow and the last

What lies on the disk already is not issued. A group is on the disk whole or not at all, so a run
that is killed loses the groups in flight and nothing else.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlvid.data.engine.store import ClipStore
from rlvid.launch.data_engine.clip_writer import ClipWriter
from rlvid.launch.data_engine.plan import PlannedClips, Rendering
from rlvid.launch.loop.line import Issue
from rlvid.launch.loop.trainer import IDLE_S
from rlvid.launch.roles import SamplingRoles


@dataclass(slots=True)
class RenderCounts:
    """What became of the plan."""

    num_planned: int = 0
    num_kept: int = 0
    """Clips that an earlier attempt left on the disk."""
    num_rendered: int = 0
    """Clips of this attempt."""
    num_quarantined: int = 0
    """Clips whose prompt cost too many actors; they are not in the data set."""
    sample_s: float = 0.0
    """Seconds of actors, all together."""
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Renderer:
    """Renders plans into one data set."""

    folder: Path
    rendering: Rendering
    roles: SamplingRoles
    groups_in_flight: int
    deadline_s: float
    """Of one file's writing."""

    def render(
        self,
        planned: Sequence[PlannedClips],
        *,
        step: int,
        on_clips: Callable[[RenderCounts], None] = lambda counts: None,
    ) -> RenderCounts:
        """Return when every planned clip is on the disk or its prompt is quarantined.

        Args:
            step: that the ledger counts the groups to.
            on_clips: called after each change of the counts.

        Raises:
            DiskFullError: the clips do not fit.
            RewardError: a scorer broke its contract, or the pool gave up.
        """
        store = ClipStore(self.folder)
        counts = RenderCounts(num_planned=sum(p.num_clips for p in planned))
        missing = deque(p for p in planned if not store.has(p.place, self.rendering.digest(p)))
        counts.num_kept = counts.num_planned - sum(p.num_clips for p in missing)
        on_clips(counts)
        began = time.monotonic()
        writer = ClipWriter(self.folder, self.rendering, deadline_s=self.deadline_s)
        try:
            self._stream(missing, writer, step, counts, on_clips)
        finally:
            counts.wall_s = time.monotonic() - began
            writer.close()
        return counts

    def _stream(
        self,
        missing: deque[PlannedClips],
        writer: ClipWriter,
        step: int,
        counts: RenderCounts,
        on_clips: Callable[[RenderCounts], None],
    ) -> None:
        line, ledger = self.roles.line, self.roles.ledger
        issued: dict[str, PlannedClips] = {}
        while missing or issued or writer.num_writing:
            while missing and len(issued) + writer.num_writing < self.groups_in_flight:
                planned = missing.popleft()
                task = self.rendering.task(planned, self.folder.name)
                issued[task.group_id] = planned
                line.issue(Issue(task=task, step=step))
            moved = line.poll()
            for group in line.take(list(issued)):
                planned = issued.pop(group.task.group_id)
                writer.begin(planned, group.group, group.scores)
                ledger.drop(group.task.group_id, "data_engine")
                counts.sample_s += group.summary.sample_s
            lost = set(issued) - set(line.in_flight()) - set(line.ready_ids())
            for group_id in lost:
                counts.num_quarantined += issued.pop(group_id).num_clips
            written = writer.poll(0.0)
            for _, num_clips in written:
                counts.num_rendered += num_clips
            if written or lost:
                on_clips(counts)
            elif not moved:
                self.roles.clock.wait(IDLE_S)
