"""The reward pool: scorers and decoder in Ray actors, owned by a thread of the driver.

    submit(group_ref) --> decode, once --> clips in the object store --> every scorer's replicas
    collect() <-- GroupScores <-- scores, or the reason why one is missing

Latents and clips travel as references, so the driver never holds them. They are returned by actor
methods, so the driver owns them and they outlive the process that made them. What goes where is
decided by `dispatch.dispatcher`, and done by `ray_loop`; this file is what callers see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray
from torch import Tensor

from rlvid.bell import Bell
from rlvid.config.cluster import ClusterConfig
from rlvid.config.model import ModelConfig
from rlvid.config.rewards import RewardsConfig
from rlvid.records import Prompt
from rlvid.rewards.base import Endpoint, RewardTimeoutError
from rlvid.rewards.decoding import ClipInfo, Frames, as_tensor, describe_clips
from rlvid.rewards.dispatch.answers import Answers, Ticket
from rlvid.rewards.dispatch.cache import ScoreCache
from rlvid.rewards.dispatch.dispatcher import Dispatcher
from rlvid.rewards.dispatch.fleet import NO_ROOM
from rlvid.rewards.dispatch.metrics import PoolMetrics
from rlvid.rewards.dispatch.placement import plan_pool
from rlvid.rewards.dispatch.pool_group import PoolGroup
from rlvid.rewards.ray_loop import PoolLoop
from rlvid.rewards.scoring import GroupScores, ScorerInfo, check_clip

if TYPE_CHECKING:
    from rlvid.rewards.vllm.pool import ServerPool

__all__ = ["RewardPool", "RewardTimeoutError", "Ticket"]


class RewardPool:
    """Scores groups of clips. Any thread may submit; one collects."""

    def __init__(
        self,
        rewards: RewardsConfig,
        model: ModelConfig | None,
        cluster: ClusterConfig,
        *,
        bell: Bell | None = None,
        run_folder: Path | None = None,
    ) -> None:
        """`model` None: clips and files will be submitted, never latents.

        Args:
            bell: rung from the pool's thread whenever `collect` may have something to return or
                to raise.
            run_folder: of the run, or its phase: a resumed driver finds the model servers again
                that were kept for it (`rewards.servers.NAME.keep_s`). None keeps none.
        """
        self._rewards = rewards
        self._model = model
        self._cluster = cluster
        self._positions = {s.label: number for number, s in enumerate(rewards.scorers)}
        self._run_folder = run_folder
        self._metrics = PoolMetrics()
        lanes, hosts = plan_pool(rewards)
        self._dispatcher = Dispatcher(
            lanes,
            hosts,
            max_attempts=rewards.max_attempts,
            deadline_s=rewards.deadline_s,
            start_deadline_s=cluster.start_deadline_s,
            heartbeat_s=rewards.heartbeat_s,
            stall_s=rewards.stall_s,
            max_lost_in_a_row=rewards.max_lost_in_a_row,
            cache=ScoreCache(rewards.cache_entries),
            metrics=self._metrics,
        )
        self._answers = Answers(bell)
        self._loop = PoolLoop(self._dispatcher, self._answers, rewards, model, cluster)
        self._servers: ServerPool | None = None

    # What callers use

    def start(self) -> None:
        """Start servers and processes; `health_check` says whether they came up."""
        if self._rewards.servers:
            from rlvid.rewards.vllm.pool import ServerPool

            self._servers = ServerPool(
                self._rewards.servers,
                self._cluster,
                node_group=self._rewards.node_group,
                run_folder=self._run_folder,
            )
            self._servers.start()
        self._loop.start()

    def health_check(self, deadline_s: float) -> None:
        """Return when servers, scorers and decoder are up and fit the model's clips.

        Raises:
            RewardTimeoutError: some are not within `deadline_s`, servers not counted, which have
                a `start_deadline_s` of their own.
            RewardError: a scorer needs other clips than the model makes, or a process died.
            Exception: what opening raised, e.g. ValueError for a bad scorer entry.
        """
        if self._servers is not None:
            self._servers.wait_ready()
            self._loop.watch(self._servers)
        if not self._answers.wait_ready(deadline_s):
            raise RewardTimeoutError(self._describe_waiting(deadline_s))
        self._check_specs()

    def submit(self, group_ref: ray.ObjectRef, scorers: Sequence[str] | None = None) -> Ticket:
        """Have a sampled group scored; returns the ticket that `collect` gives back.

        Args:
            scorers: labels of those to ask, all when None.
        """
        return self._submit(payload=group_ref, scorers=scorers)

    def submit_clips(
        self,
        frames: Frames,
        prompt: Prompt,
        *,
        fps: float,
        group_id: str,
        scorers: Sequence[str] | None = None,
    ) -> Ticket:
        """Have clips scored as they are: uint8 [G, T, H, W, 3], a group of one prompt.

        Raises:
            ValueError: another shape or type.
            RewardError: a scorer that is asked needs other clips; nothing was submitted.
        """
        info = describe_clips(frames, prompt, fps=fps, group_id=group_id)
        shape = (info.num_frames, info.height, info.width)
        self.check_clips(shape, fps=fps, scorers=scorers)
        reference = ray.put(np.ascontiguousarray(frames))
        return self._submit(info=info, frames=reference, scorers=scorers)

    def check_clips(
        self, shape: tuple[int, int, int], *, fps: float, scorers: Sequence[str] | None = None
    ) -> None:
        """Raise RewardError when a scorer needs other clips than such of (T, H, W).

        Args:
            scorers: labels of those that will be asked, all when None.
        """
        for label, info in dict(self._dispatcher.infos).items():
            if scorers is None or label in scorers:
                where = f"rewards {label!r}"
                check_clip(info.clip_spec, shape, fps=fps, where=where, is_submitted=True)

    def submit_files(
        self,
        files: Sequence[bytes],
        prompt: Prompt,
        *,
        group_id: str,
        scorers: Sequence[str] | None = None,
    ) -> Ticket:
        """Have MP4 files scored, a group of one prompt; one that is no video is a missing score."""
        promised = ClipInfo(
            group_id=group_id,
            prompt=prompt,
            indices=tuple(range(len(files))),
            digests=("",) * len(files),
            num_frames=0,
            height=0,
            width=0,
            fps=0.0,
            decode_s=0.0,
        )
        return self._submit(
            payload=(ray.put(tuple(files)), prompt, group_id), promised=promised, scorers=scorers
        )

    def collect(self, timeout_s: float) -> list[tuple[Ticket, GroupScores]]:
        """Return (ticket, scores) of groups that are done, waiting at most `timeout_s` for one.

        With 0 it never waits; see `bell`.

        Raises:
            RewardError: a scorer broke its contract, or replicas die faster than they score.
            Exception: what else ended the pool, e.g. a group that cannot be decoded.
        """
        return self._answers.take(timeout_s)

    def score(self, group_refs: Sequence[ray.ObjectRef]) -> list[GroupScores]:
        """Score all the groups; the answers are in their order. Call it with nothing in flight."""
        tickets = [self.submit(ref) for ref in group_refs]
        answers: dict[Ticket, GroupScores] = {}
        while len(answers) < len(tickets):
            answers.update(self.collect(timeout_s=self._rewards.deadline_s))
        return [answers[ticket] for ticket in tickets]

    def clips(self, group_ref: ray.ObjectRef) -> Tensor:
        """Return the decoded clips of a group, [G, T, 3, H, W] uint8, for a log or report."""
        ticket, answer = self._answers.new_promise()
        self._loop.submit(PoolGroup(ticket, payload=group_ref, promised=None, labels=()))
        # The decoder may be replaced on the way; the dispatcher limits how often.
        limit_s = self._rewards.max_attempts * (
            self._rewards.deadline_s + self._cluster.start_deadline_s
        )
        frames = answer.result(timeout=limit_s)
        return as_tensor(ray.get(frames, timeout=self._rewards.deadline_s))

    def scale(self, label: str, num_replicas: int) -> None:
        """Keep `num_replicas` of a scorer from now on; those in excess finish what they have.

        Raises:
            ValueError: no such scorer, or less than one replica.
        """
        self._check_label(label)
        if num_replicas < 1:
            raise ValueError(f"rewards {label!r}: expected at least 1 replica, got {num_replicas}")
        self._loop.post(partial(self._dispatcher.scale, label, num_replicas))

    def num_replicas(self, label: str) -> int:
        """Return how many replicas of a scorer there are, those that are starting included.

        Raises:
            ValueError: no such scorer.
        """
        self._check_label(label)
        return self._dispatcher.num_replicas(label)

    def processes(self) -> list[tuple[str, int, int]]:
        """Return (label, replica, pid on its node) of everything that is open.

        The decoder's label is "decoder"; a process that scorers share is there under each label.
        Replicas are numbered by age.
        """
        pids, found = self._loop.pids, list[tuple[str, int, int]]()
        count: Counter[str] = Counter()
        for process_id, services in sorted(self._dispatcher.processes().items()):
            if process_id not in pids:
                continue
            for service in services:
                label = service or "decoder"
                found.append((label, count[label], pids[process_id]))
                count[label] += 1
        return found

    def endpoints(self, server: str) -> tuple[Endpoint, ...]:
        """Return where a model server answers now, for a client beside the scorers.

        Raises:
            ValueError: `rewards.servers` has none of that name.
        """
        if self._servers is None or server not in self._rewards.servers:
            raise ValueError(
                f"rewards.servers: no server {server!r}; there: "
                f"{', '.join(self._rewards.servers) or 'none'}"
            )
        return self._servers.endpoints(server)

    def server_processes(self) -> list[tuple[str, int, int]]:
        """Return (server, replica, process group on its node) of the model servers that run."""
        return [] if self._servers is None else self._servers.processes()

    def metrics(self) -> dict[str, float]:
        """Return counts since the start, latencies of the last calls, and what is so now."""
        return self._row(of_step=False)

    def step_metrics(self) -> dict[str, float]:
        """Return the same since this was called last, and start a new step."""
        return self._row(of_step=True)

    @property
    def scorer_infos(self) -> dict[str, ScorerInfo]:
        """What each scorer said of itself when it was opened, by label."""
        return dict(self._dispatcher.infos)

    @property
    def scorer_versions(self) -> dict[str, str]:
        """What changes when the same clip may get another score, by label.

        The models behind a scorer's servers are part of it, so it is known once it is connected.
        """
        return {label: self._dispatcher.version(label) for label in self.scorer_infos}

    @property
    def num_outstanding(self) -> int:
        """Groups submitted and not yet collected."""
        return self._answers.num_outstanding

    @property
    def num_processes(self) -> int:
        """Processes that live or are starting."""
        return self._loop.num_processes

    @property
    def num_replaced(self) -> int:
        """Processes that died or were killed for lateness since the pool started."""
        return self._dispatcher.num_replaced

    def shutdown(self, *, keeps_servers: bool = False) -> None:
        """End processes and servers; groups in flight are forgotten.

        Args:
            keeps_servers: leave model servers with `keep_s` to their leases, for a driver that
                resumes the run.
        """
        self._loop.stop()
        if self._servers is not None:
            self._servers.shutdown(keeps_servers=keeps_servers)
            self._servers = None

    # Inside

    def _check_label(self, label: str) -> None:
        if label not in self._positions:
            raise ValueError(f"rewards: no scorer {label!r}; there: {', '.join(self._positions)}")

    def _submit(
        self,
        *,
        payload: object = None,
        info: ClipInfo | None = None,
        frames: object = None,
        promised: ClipInfo | None = None,
        scorers: Sequence[str] | None = None,
    ) -> Ticket:
        unknown = set(scorers or ()) - set(self._positions)
        if unknown:
            raise ValueError(
                f"rewards: no scorer {sorted(unknown)[0]!r}; there: {', '.join(self._positions)}"
            )
        labels = [s for s in self._positions if scorers is None or s in scorers]
        ticket = self._answers.new_ticket()
        group = PoolGroup(ticket, payload, promised, tuple(labels))
        if info is not None:
            group.info, group.frames = info, frames
        self._loop.submit(group)
        return ticket

    def _check_specs(self) -> None:
        """Refuse scorers that need other clips than the model makes, before anything is sampled."""
        if self._model is None:
            return
        model = self._model
        shape = (model.num_frames, model.height, model.width)
        for label, info in self._dispatcher.infos.items():
            where = f"rewards.scorers.{self._positions[label]} {label!r}"
            check_clip(info.clip_spec, shape, fps=model.fps, where=where)

    def _describe_waiting(self, deadline_s: float) -> str:
        parts = [
            f"{missing} of {wanted} replicas of {names}"
            for names, (missing, wanted) in self._dispatcher.incomplete.items()
        ]
        return f"rewards: {' and '.join(parts)} did not open within {deadline_s:g} s. {NO_ROOM}"

    def _row(self, *, of_step: bool) -> dict[str, float]:
        answer: Future[dict[str, float]] = Future()

        def read() -> None:
            row = self._metrics.metrics(self._dispatcher.live(), of_step=of_step)
            if of_step:
                self._metrics.start_step()
            answer.set_result(row)

        self._loop.post(read)
        row = answer.result(timeout=30.0)
        if self._servers is not None:
            row |= self._servers.metrics()
        return row
