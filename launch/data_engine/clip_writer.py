"""Writes rendered clips to disk in a process of its own, so that no tensor passes the driver."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlvid.launch.data_engine.plan import PlannedClips, Rendering
from rlvid.process_env import runtime_env_of
from rlvid.ray_errors import ACTOR_LOST, cause_of, first_line
from rlvid.records import RolloutGroup
from rlvid.rewards.scoring import GroupScores

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Of one file; the writer is started again in between."""


@ray.remote(num_cpus=0, max_restarts=MAX_ATTEMPTS)
class ClipWriterActor:
    """A ClipStore in a process of its own."""

    def __init__(self, folder: Path, rendering: Rendering) -> None:
        from rlvid.data.engine.store import ClipStore

        self._store = ClipStore(folder)
        self._rendering = rendering

    def write(self, planned: PlannedClips, group: RolloutGroup, scores: GroupScores) -> int:
        """Write the clips of a prompt and return their number; a clip is a row of the latents."""
        import torch

        from rlvid.weights import digest_tensors

        latents = torch.stack([rollout.latents for rollout in group.rollouts])
        given: list[dict[str, float]] = [{} for _ in group.rollouts]
        for score in scores.scores:
            if score.value is not None:
                given[score.index][score.scorer] = score.value
        records = self._rendering.records(
            planned,
            self._store.file(planned.place),
            given,
            [digest_tensors({"latents": row}) for row in latents],
        )
        self._store.write(planned.place, self._rendering.digest(planned), latents, records)
        return len(records)


@dataclass(slots=True)
class _Writing:
    planned: PlannedClips
    group: Any
    scores: GroupScores
    attempts: int = 1


class ClipWriter:
    """The driver's handle; one thread calls it."""

    def __init__(self, folder: Path, rendering: Rendering, *, deadline_s: float) -> None:
        node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor = ClipWriterActor.options(  # type: ignore[attr-defined]
            scheduling_strategy=node, runtime_env=runtime_env_of({"OMP_NUM_THREADS": "1"})
        ).remote(folder.resolve(), rendering)
        self._deadline_s = deadline_s
        self._writing: dict[Any, _Writing] = {}

    @property
    def num_writing(self) -> int:
        return len(self._writing)

    def begin(self, planned: PlannedClips, group: Any, scores: GroupScores) -> None:
        """Have a group written; `group` is a reference that this process owns."""
        call = self._actor.write.remote(planned, group, scores)
        self._writing[call] = _Writing(planned, group, scores)

    def poll(self, timeout_s: float) -> list[tuple[PlannedClips, int]]:
        """Return what is on the disk since the last call, and the number of its clips.

        Raises:
            DiskFullError, RuntimeError: what writing met, or a writer that died again and again.
        """
        if not self._writing:
            return []
        done, _ = ray.wait(
            list(self._writing),
            num_returns=len(self._writing),
            timeout=timeout_s,
            fetch_local=False,
        )
        found = []
        for call in done:
            writing = self._writing.pop(call)
            try:
                found.append((writing.planned, int(ray.get(call, timeout=self._deadline_s))))
            except ACTOR_LOST as error:
                self._again(writing, error)
            except RayTaskError as error:
                raise cause_of(error) from error  # the file's own error, e.g. a full disk
        return found

    def close(self) -> None:
        ray.kill(self._actor)

    def _again(self, writing: _Writing, error: Exception) -> None:
        if writing.attempts >= MAX_ATTEMPTS:
            raise RuntimeError(
                f"data_engine: the writer of clips died {writing.attempts} times: "
                f"{first_line(error)}"
            ) from error
        logger.warning("writing place=%d again: %s", writing.planned.place, first_line(error))
        call = self._actor.write.remote(writing.planned, writing.group, writing.scores)
        writing.attempts += 1
        self._writing[call] = writing
