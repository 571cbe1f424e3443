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
from rlvid.rewards.base import ClipSpec, Serving


class Slow:
    """Takes its time, once a call, and leaves its process id as a file name."""

    clip_spec = ClipSpec()

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        seconds: float
        pid_folder: str = ""

    def __init__(self, config: Config) -> None:
        self._config = config

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        if self._config.pid_folder:
            (Path(self._config.pid_folder) / str(os.getpid())).touch()
        time.sleep(self._config.seconds)
        return videos.mean(dim=(1, 2, 3, 4))


class Mean:
    """The mean of a clip's pixels, at once."""

    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return videos.mean(dim=(1, 2, 3, 4))


class HalfACpu(Mean):
    """Declares a share of a CPU, and a second replica."""

    serving = Serving(num_cpus=0.25, num_replicas=2)


class Crashes:
    """Ends its process without a word, as a bug in a native library does."""

    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        os._exit(1)
        return torch.zeros(len(videos))  # unreachable, for the type


class CrashesOnWhite(Mean):
    """Ends its process on a white clip only."""

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        if bool((videos.mean(dim=(1, 2, 3, 4)) > 0.99).any()):
            os._exit(1)
        return super().score(videos, prompts)
