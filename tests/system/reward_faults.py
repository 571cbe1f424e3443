"""Scorers that fail the way processes fail; pool tests name them in recipes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec


class Slow:
    """Takes its time and leaves its process id as a file name."""

    clip_spec = ClipSpec()

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        seconds: float
        pid_folder: str

    def __init__(self, config: Config) -> None:
        self._config = config

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        (Path(self._config.pid_folder) / str(os.getpid())).touch()
        time.sleep(self._config.seconds)
        return videos.mean(dim=(1, 2, 3, 4))


class Crashes:
    """Ends its process without a word, as a bug in a native library does."""

    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        os._exit(1)
        return torch.zeros(len(videos))  # unreachable, for the type
