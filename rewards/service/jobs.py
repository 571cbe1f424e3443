"""Requests on their way through a pool, for the HTTP service: bounded, and answered once.

    submit(request) --> pool.submit_clips, submit_files --> pool.collect (a thread) --> Future

A request's id is remembered: repeated while it is scored it waits for the same scores, repeated
later it gets them again. So a client that lost an answer may ask again without cost.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import xxhash

from rlvid.records import Prompt, Score
from rlvid.rewards.base import RewardError
from rlvid.rewards.scoring import GroupScores
from rlvid.rewards.service.media import MediaFolder
from rlvid.rewards.service.protocol import (
    ClipGroup,
    ClipScore,
    ScoreAnswer,
    ScoredGroup,
    ScoreRequest,
)
from rlvid.rewards.wire import MAX_TEXT

logger = logging.getLogger(__name__)

COLLECT_S = 0.5
"""How long the thread waits in the pool before it looks whether it should stop."""


class ClipPool(Protocol):
    """What the service needs of `RewardPool`."""

    def submit_clips(
        self,
        frames: Any,
        prompt: Prompt,
        *,
        fps: float,
        group_id: str,
        scorers: Sequence[str] | None = None,
    ) -> int: ...

    def submit_files(
        self,
        files: Sequence[bytes],
        prompt: Prompt,
        *,
        group_id: str,
        scorers: Sequence[str] | None = None,
    ) -> int: ...

    def check_clips(
        self, shape: tuple[int, int, int], *, fps: float, scorers: Sequence[str] | None = None
    ) -> None: ...

    def collect(self, timeout_s: float) -> list[tuple[int, GroupScores]]: ...


class QueueFullError(RuntimeError):
    """More clips wait than the service may hold."""


class HandOverError(RewardError):
    """The pool did not take clips that nothing is wrong with: it has ended, or has no room."""


class ReusedIdError(ValueError):
    """A request id that belongs to another request."""


@dataclass(slots=True, eq=False)
class _Job:
    """One request; `future` is what all who ask with its id wait for."""

    request_id: str
    digest: str
    labels: tuple[str, ...]
    num_clips: int
    groups: list[ScoredGroup | None]
    media: MediaFolder
    future: Future[ScoreAnswer] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Part:
    """One group of a job, while the pool has it."""

    job: _Job
    position: int
    group_id: str
    clip_ids: tuple[str, ...]
    digests: tuple[str, ...]


class ScoringJobs:
    """Owns the thread that collects from the pool. Any thread may submit."""

    def __init__(
        self,
        pool: ClipPool,
        labels: Sequence[str],
        *,
        max_clips: int,
        kept_answers: int,
        media_folder: Path | None = None,
    ) -> None:
        """`labels` of the pool's scorers; `max_clips` may wait at a time.

        `media_folder` is that of `ServiceSettings`.
        """
        self._pool = pool
        self._labels = tuple(labels)
        self._max_clips = max_clips
        self._kept_answers = kept_answers
        self._media_folder = media_folder
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._parts: dict[int, _Part] = {}
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._num_clips = 0
        self._error: BaseException | None = None
        self._stops = False
        self._thread = threading.Thread(target=self._collect, name="reward-jobs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop collecting; requests still in flight fail."""
        with self._lock:
            self._stops = True
            self._arrived.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=10 * COLLECT_S)
        self._fail(RewardError("rewards: the service is shutting down"))

    @property
    def num_clips(self) -> int:
        """Clips that wait for scores."""
        return self._num_clips

    @property
    def error(self) -> BaseException | None:
        """What ended the pool; None while it works."""
        return self._error

    def submit(self, request: ScoreRequest) -> Future[ScoreAnswer]:
        """Have the request scored, once; may take a moment, since clips are copied.

        Raises:
            QueueFullError: too many clips wait already.
            ReusedIdError: the id belongs to another request.
            ValueError: an unknown scorer, or a prompt's media that do not decode.
            HandOverError: the pool does not take it; nothing is wrong with the request.
            RewardError: a scorer needs other clips; nothing was submitted.
        """
        labels = self._chosen(request.scorers)
        for group in request.groups:
            self._check(group, labels)
        digests = [tuple(group.digests()) for group in request.groups]
        identity = _identity(request, digests)
        media = MediaFolder(self._media_folder)
        job = _Job(
            request.request_id, identity, labels, request.num_clips, [None] * len(digests), media
        )
        try:
            prompts = media.prompts([group.prompt for group in request.groups])
            taken = self._take_in(request, job, prompts, digests)
        except BaseException:
            media.close()
            raise
        if taken is not job:  # asked before
            media.close()
        return taken.future

    def _take_in(
        self,
        request: ScoreRequest,
        job: _Job,
        prompts: Sequence[Prompt],
        digests: Sequence[tuple[str, ...]],
    ) -> _Job:
        """Return the job, now in the pool's hands, or the one that has its id already."""
        with self._lock:
            if self._error is not None:
                raise HandOverError(f"rewards: the pool has ended: {self._error}")
            known = self._jobs.get(request.request_id)
            if known is not None:
                if known.digest != job.digest:
                    raise ReusedIdError(
                        f"request_id {request.request_id!r} belongs to another request; "
                        "make a new id for each"
                    )
                return known
            if self._num_clips and self._num_clips + request.num_clips > self._max_clips:
                raise QueueFullError(f"{self._num_clips} clips wait, {self._max_clips} may")
            tickets = self._hand_over(request, job, prompts, digests)
            self._parts.update(tickets)
            self._jobs[job.request_id] = job
            self._num_clips += job.num_clips
            self._arrived.notify_all()
        return job

    def _hand_over(
        self,
        request: ScoreRequest,
        job: _Job,
        prompts: Sequence[Prompt],
        digests: Sequence[tuple[str, ...]],
    ) -> dict[int, _Part]:
        """Give every group to the pool; of a request that it takes only in part nothing is read."""
        parts = {}
        for position, group in enumerate(request.groups):
            name = f"{request.request_id}/{group.group_id}"
            try:
                ticket = self._give(group, prompts[position], name, job.labels)
            except Exception as error:  # whatever ended the pool is raised here as well
                raise HandOverError(
                    f"rewards: the pool does not take clips: {type(error).__name__}: {error}"
                ) from error
            clip_ids = tuple(group.clip_ids)
            parts[ticket] = _Part(job, position, group.group_id, clip_ids, digests[position])
        return parts

    def _give(self, group: ClipGroup, prompt: Prompt, name: str, labels: Sequence[str]) -> int:
        if group.files is not None:
            return self._pool.submit_files(group.files, prompt, group_id=name, scorers=labels)
        assert group.frames is not None, "the schema says so"
        assert group.fps is not None, "the schema says so"
        frames = group.frames.tensor().numpy()
        return self._pool.submit_clips(frames, prompt, fps=group.fps, group_id=name, scorers=labels)

    def _check(self, group: ClipGroup, labels: Sequence[str]) -> None:
        """Raise RewardError when a scorer needs other clips; files show their size only later."""
        if group.frames is None:
            return
        assert group.fps is not None, "the schema says so"
        _, frames, height, width, _ = group.frames.shape
        try:
            self._pool.check_clips((frames, height, width), fps=group.fps, scorers=labels)
        except RewardError as error:
            raise RewardError(f"group {group.group_id!r}: {error}") from error

    def _chosen(self, wanted: Sequence[str]) -> tuple[str, ...]:
        for name in wanted:
            if name not in self._labels:
                raise ValueError(f"no scorer {name!r} here; there: {', '.join(self._labels)}")
        return tuple(wanted) or self._labels

    def _collect(self) -> None:
        """Take answers from the pool until stopped; the body of the thread.

        Also while nobody waits: the pool says only here that it has ended, and what was scored for
        a request it took in part is to be dropped.
        """
        try:
            while True:
                with self._lock:
                    if not self._parts and not self._stops:
                        self._arrived.wait(COLLECT_S)
                    if self._stops:
                        return
                    timeout_s = COLLECT_S if self._parts else 0.0
                for ticket, scores in self._pool.collect(timeout_s):
                    self._take(ticket, scores)
        except BaseException as error:  # carried to every request that waits, and to /healthz
            logger.exception("the reward pool has ended")
            self._error = error
            self._fail(error)

    def _take(self, ticket: int, answer: GroupScores) -> None:
        with self._lock:
            part = self._parts.pop(ticket, None)
            if part is None:  # of a request that the pool took in part
                return
            job = part.job
            job.groups[part.position] = _scored(part, answer.scores)
            groups = [group for group in job.groups if group is not None]
            if len(groups) < len(job.groups):
                return
            self._num_clips -= job.num_clips
            self._forget_old()
        job.media.close()
        job.future.set_result(ScoreAnswer(request_id=job.request_id, groups=groups))

    def _forget_old(self) -> None:
        """Keep the newest finished answers only; what is still scored always stays."""
        finished = [name for name, job in self._jobs.items() if job.future.done()]
        for name in finished[: max(0, len(finished) - self._kept_answers)]:
            del self._jobs[name]

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._parts.clear()
            self._num_clips = 0
            waiting = [job for job in self._jobs.values() if not job.future.done()]
        for job in waiting:
            job.media.close()
            job.future.set_exception(RewardError(f"rewards: the pool has ended: {error}"))


def _identity(request: ScoreRequest, digests: Sequence[Sequence[str]]) -> str:
    """Return a digest of all that the scores depend on."""
    hasher = xxhash.xxh3_128()
    for group, clips in zip(request.groups, digests, strict=True):
        shape = group.frames.shape if group.frames is not None else ()
        parts = (group.group_id, group.prompt.identity, group.clip_ids, group.fps, shape, clips)
        hasher.update(repr(parts).encode())
    hasher.update(repr(request.scorers).encode())
    return str(hasher.hexdigest())


def _scored(part: _Part, scores: Sequence[Score]) -> ScoredGroup:
    """Put ids and digests to the scores that were asked for."""
    chosen = [
        ClipScore(
            clip_id=part.clip_ids[score.index],
            digest=part.digests[score.index],
            scorer=score.scorer,
            value=score.value,
            error=score.error[:MAX_TEXT] if score.error else score.error,
        )
        for score in scores
    ]
    return ScoredGroup(group_id=part.group_id, scores=chosen)
