"""A reward service on a local port, and a pool of real scorers in threads, for tests."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import uvicorn
from torch import Tensor

from rlvid.records import Prompt, Score
from rlvid.rewards.base import ClipSpec, GroupReward, Reward, Serving
from rlvid.rewards.decoding import DecodeWorker, Frames, describe_clips
from rlvid.rewards.scoring import GroupScores, ScoreItem, ScorerWorker, check_clip
from rlvid.rewards.service.app import ServiceSettings, make_app
from rlvid.rewards.service.jobs import ScoringJobs
from rlvid.rewards.service.protocol import ScorerDescription

TOKEN = "a token that only tests know"


class ReadsId:
    """Reads the number that `numbered_clips` wrote into the pixels: a swapped score is seen."""

    clip_spec = ClipSpec()
    serving = Serving()

    def __init__(self) -> None:
        self.times_scored: Counter[int] = Counter()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        levels = (videos[:, 0, :, 0, 0] * 255.0).round()
        numbers = levels[:, 0] + 256.0 * levels[:, 1]
        self.times_scored.update(int(number) for number in numbers)
        return torch.as_tensor(score_of(numbers))


def score_of(number: Any) -> Any:
    """The score of a clip with this number; never 0, and exact in float32."""
    return (number + 1.0) / 1024.0


def numbered_clips(numbers: Sequence[int]) -> Frames:
    """[G, 2, 8, 8, 3] uint8 clips that hold their number in their first pixel."""
    frames = np.full((len(numbers), 2, 8, 8, 3), 77, dtype=np.uint8)
    for row, number in enumerate(numbers):
        frames[row, 0, 0, 0] = (number % 256, number // 256, 0)
    return frames


def numbered_videos(numbers: Sequence[int]) -> Tensor:
    """The same as a scorer gets them, [B, 2, 3, 8, 8] float32 in [0, 1]."""
    return torch.from_numpy(numbered_clips(numbers)).permute(0, 1, 4, 2, 3).float() / 255.0


class ThreadPool:
    """Real scorer workers behind the interface of RewardPool, in one thread instead of Ray."""

    def __init__(self, scorers: dict[str, Reward | GroupReward]) -> None:
        self._workers = {
            label: ScorerWorker(scorer, label=label) for label, scorer in scorers.items()
        }
        self.num_taken = 0
        self.num_collected = 0
        self._error: Exception | None = None
        self._tickets = itertools.count()
        self._todo: queue.Queue[tuple[int, Frames, Prompt, float, str, Any]] = queue.Queue()
        self._done: queue.Queue[tuple[int, GroupScores] | Exception] = queue.Queue()
        threading.Thread(target=self._run, daemon=True).start()

    def submit_clips(
        self,
        frames: Frames,
        prompt: Prompt,
        *,
        fps: float,
        group_id: str,
        scorers: Sequence[str] | None = None,
    ) -> int:
        if self._error is not None:
            raise self._error
        describe_clips(frames, prompt, fps=fps, group_id=group_id)
        self.num_taken += 1
        ticket = next(self._tickets)
        self._todo.put((ticket, frames, prompt, fps, group_id, scorers or self._workers))
        return ticket

    def submit_files(
        self,
        files: Sequence[bytes],
        prompt: Prompt,
        *,
        group_id: str,
        scorers: Sequence[str] | None = None,
    ) -> int:
        frames, info = DecodeWorker(None, fps=0.0).decode_files(files, prompt, group_id)
        return self.submit_clips(frames, prompt, fps=info.fps, group_id=group_id, scorers=scorers)

    def check_clips(
        self, shape: tuple[int, int, int], *, fps: float, scorers: Sequence[str] | None = None
    ) -> None:
        for label, worker in self._workers.items():
            if scorers is None or label in scorers:
                spec = worker.info().clip_spec
                check_clip(spec, shape, fps=fps, where=f"rewards {label!r}", is_submitted=True)

    def end(self, error: Exception) -> None:
        """End as a pool does whose processes die; nothing is taken any more."""
        self._error = error
        self._done.put(error)

    def collect(self, timeout_s: float) -> list[tuple[int, GroupScores]]:
        try:
            done = self._done.get(timeout=timeout_s)
        except queue.Empty:
            return []
        if isinstance(done, Exception):
            raise done
        self.num_collected += 1
        return [done]

    def metrics(self) -> dict[str, float]:
        return {"pool/test/count": 1.0}

    def _run(self) -> None:
        while True:
            ticket, frames, prompt, fps, group_id, labels = self._todo.get()
            items = [
                ScoreItem(item_id=(ticket, row), prompt=prompt, source=0, row=row)
                for row in range(len(frames))
            ]
            scores = []
            try:
                for label in labels:
                    scores += [
                        Score(
                            group_id=group_id,
                            index=result.item_id[1],
                            scorer=label,
                            value=result.value,
                            error=result.error or None,
                        )
                        for result in self._workers[label].score(items, [frames], fps=fps)
                    ]
            except Exception as error:  # a broken contract ends the pool, as in RewardPool
                self._done.put(error)
                return
            answer = GroupScores(scores=tuple(scores), decode_s=0.0, score_s=0.0)
            self._done.put((ticket, answer))


def describe(scorers: dict[str, Reward | GroupReward]) -> list[ScorerDescription]:
    return [
        ScorerDescription(
            name=label,
            weight=1.0,
            is_group_wise=isinstance(scorer, GroupReward),
            version="1",
        )
        for label, scorer in scorers.items()
    ]


@contextmanager
def served(
    scorers: dict[str, Reward | GroupReward],
    *,
    settings: ServiceSettings | None = None,
    around: Any = None,
    pool: ThreadPool | None = None,
) -> Iterator[str]:
    """Serve the scorers; gives the base URL. `around` wraps the ASGI application."""
    settings = settings or ServiceSettings()
    pool = pool or ThreadPool(scorers)
    jobs = ScoringJobs(
        pool,
        list(scorers),
        max_clips=settings.max_clips,
        kept_answers=settings.kept_answers,
        media_folder=settings.media_folder,
    )
    app: Any = make_app(jobs, describe(scorers), token=TOKEN, settings=settings, pool=pool)
    if around is not None:
        app = around(app)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", access_log=False)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    give_up = time.monotonic() + 20.0
    while not server.started:
        assert time.monotonic() < give_up, "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20.0)
