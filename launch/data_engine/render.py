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
from dataclasses import dataclass, field
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
    lost_places: list[int] = field(default_factory=list)
    """Of those prompts: there is no file of them."""
    sample_s: float = 0.0
    """Seconds of actors, all together."""
    wall_s: float = 0.0

    def on_disk(self, planned: Sequence[PlannedClips]) -> list[PlannedClips]:
        """Return what of the plan has a file: all that was not quarantined."""
        return [one for one in planned if one.place not in set(self.lost_places)]

    def metrics(self) -> dict[str, float]:
        """Return the counts by the names of the metrics table."""
        return {
            "data_engine/clips/planned": float(self.num_planned),
            "data_engine/clips/kept": float(self.num_kept),
            "data_engine/clips/rendered": float(self.num_rendered),
            "data_engine/clips/quarantined": float(self.num_quarantined),
            "data_engine/clips/per_s": self.num_rendered / max(self.wall_s, 1e-9),
        }


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
            RuntimeError: not a single prompt came through.
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
        if planned and len(counts.lost_places) == len(planned):
            raise RuntimeError(
                f"data_engine: all {len(planned)} prompts of {self.folder.name} were quarantined, "
                "each having cost rollout.max_deaths_per_prompt actors; look at the actors' logs "
                "in the Ray session folder"
            )
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
                lost_one = issued.pop(group_id)
                counts.num_quarantined += lost_one.num_clips
                counts.lost_places.append(lost_one.place)
            written = writer.poll(0.0)
            for _, num_clips in written:
                counts.num_rendered += num_clips
            if written or lost:
                on_clips(counts)
            elif not moved:
                self.roles.clock.wait(IDLE_S)
