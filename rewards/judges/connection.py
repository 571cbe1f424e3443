"""What the VLM scorers share: their settings, their clips, and the line to their server."""

from __future__ import annotations

import logging
import os
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from rlvid.rewards.base import Endpoint, RewardError, RewardTimeoutError
from rlvid.rewards.judges.client import JudgeClient
from rlvid.rewards.judges.frames import Layout, View, to_frames
from rlvid.rewards.judges.loop_thread import LoopThread
from rlvid.rewards.judges.modes.base import Clip, Judge
from rlvid.rewards.judges.prompt_files import PromptFile
from rlvid.rewards.judges.router import Router, RouterSettings

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskSettings:
    """How a VLM scorer asks; the defaults are for the embedded judge."""

    prompts: str = "tiny_world"
    """Prompt file: the name of one that ships (rewards/judges/prompts/) or a path to a .yaml."""
    layout: Layout = "tiny_judge"
    """How frames are shown, see `frames.View`."""
    num_frames: int | None = 8
    """Frames shown, evenly spread; null shows all. tiny_judge has its own."""
    height: int | None = None
    width: int | None = None
    columns: int = 4
    fps: int = 8
    """Frame rate of the clips; a clip of another is refused."""
    check_sight: bool = True
    """Compare the server's count of prompt tokens with what was sent, see `sight`."""
    concurrency: int = 16
    """Requests in flight at once, of one replica of the scorer."""
    timeout_s: float = 60.0
    """One attempt of one request."""
    deadline_s: float = 240.0
    """One request with all its attempts; longer than a restart of the server takes."""
    max_attempts: int = 5

    @property
    def view(self) -> View:
        return View(
            layout=self.layout,
            num_frames=self.num_frames,
            height=self.height,
            width=self.width,
            columns=self.columns,
        )


class Connection:
    """One prompt file put to one model; opens its loop when it is first connected."""

    def __init__(self, settings: AskSettings, file: PromptFile) -> None:
        self._settings = settings
        self._file = file
        self._loop: LoopThread | None = None
        self._router: Router | None = None
        self._judge: Judge | None = None
        self._pid = 0
        self.model_digest = ""
        """"" until connected."""

    def connect(self, endpoints: Sequence[Endpoint]) -> None:
        """Take the replicas there are now; RewardError when they are not of one model."""
        digests = sorted({endpoint.model_digest for endpoint in endpoints})
        if len(digests) > 1:
            raise RewardError(
                f"judge: the replicas of one server hold different models: {', '.join(digests)}. "
                "Their scores do not compare; give each model an entry of its own in "
                "rewards.servers."
            )
        if self._loop is None or self._pid != os.getpid():  # threads do not survive a fork
            self._loop, self._pid = LoopThread(), os.getpid()
            self._loop.run(self._open(), 10.0)
        if digests:
            self.model_digest = digests[0]
        self._loop.run(self._replace(endpoints), 10.0)

    @property
    def judge(self) -> Judge:
        if self._judge is None:
            raise RewardError(
                "judge: not connected to a server: expected `server: NAME` in the scorer's entry "
                "with NAME in rewards.servers."
            )
        return self._judge

    def run(self, work: Coroutine[Any, Any, T], deadline_s: float) -> T:
        """Run a coroutine in the router's loop; RewardTimeoutError when a call takes too long."""
        assert self._loop is not None, "judge is asked for first, and that raises"
        try:
            return self._loop.run(work, deadline_s)
        except TimeoutError as error:
            raise RewardTimeoutError(
                f"judge: one call took more than deadline_s {deadline_s:g} of the scorer's entry. "
                "Raise it, or lower batch_size; see the server's log when it is slower than usual."
            ) from error

    def clips(self, videos: Tensor) -> list[Clip]:
        """[B, T, 3, H, W] float in [0, 1] -> clips as they will be shown."""
        view, fps = self._settings.view, float(self._settings.fps)
        return [Clip(to_frames(video), fps=fps, view=view) for video in videos]

    @property
    def metrics(self) -> dict[str, int]:
        """Return counts since the start: requests, retries, failed."""
        if self._router is None:
            return {"requests": 0, "retries": 0, "failed": 0}
        return {
            "requests": sum(self._router.counts().values()),
            "retries": self._router.num_retries,
            "failed": self._router.num_failed,
        }

    def close(self) -> None:
        if self._loop is not None and self._router is not None:
            self._loop.run(self._router.aclose(), 10.0)
            self._loop.close()
        self._loop = self._router = self._judge = None

    async def _open(self) -> None:
        settings = self._settings
        self._router = Router(
            RouterSettings(
                timeout_s=settings.timeout_s,
                deadline_s=settings.deadline_s,
                max_attempts=settings.max_attempts,
            )
        )
        self._judge = Judge(
            JudgeClient(self._router),
            self._file,
            checks_sight=settings.check_sight,
            concurrency=settings.concurrency,
        )

    async def _replace(self, endpoints: Sequence[Endpoint]) -> None:
        assert self._router is not None, "opened before"
        self._router.replace(endpoints)


def view_version(settings: AskSettings) -> str:
    """Return what the settings do not show of how frames are laid out."""
    if settings.layout != "tiny_judge":
        return settings.layout
    import json
    from dataclasses import asdict

    from rlvid.rewards.judges.frames import tiny_layout

    layout = asdict(tiny_layout())
    layout.pop("measured", None)
    return "tiny_judge " + json.dumps(layout, sort_keys=True)
