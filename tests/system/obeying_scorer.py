"""A scorer that does what its prompt says, for tests of the process it runs in."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, Endpoint, Serving


class Obeys:
    """Scores a clip by its mean, unless the first prompt asks for something else."""

    clip_spec = ClipSpec(fps=8, min_frames=2, colour="grey", value_range=(-1.0, 1.0))
    serving = Serving(batch_size=3, deadline_s=30.0)
    version = "obeys-7"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        refuses: str = ""

    def __init__(self, config: Config) -> None:
        if config.refuses:
            raise ValueError(config.refuses)
        self._servers = 0
        self._deadline_s = 0.0

    def keep_deadline(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s

    def connect(self, endpoints: Sequence[Endpoint]) -> None:
        self._servers = len(endpoints)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        scores = videos.mean(dim=(1, 2, 3, 4))
        order, _, argument = prompts[0].text.partition(" ")
        if order == "raise":
            raise KeyError(argument)
        if order == "print":
            print("\x00 not a frame\n" * 1000, flush=True)
            subprocess.run(["echo", "a child prints as well"], check=True, timeout=10)
        if order == "tell":
            Path(argument).touch()
            time.sleep(60.0)
        if order == "hang":
            time.sleep(float(argument))
        if order == "die":
            print(f"last words: {argument}", file=sys.stderr, flush=True)
            os._exit(9)
        if order == "variable":
            scores[:] = float(argument in os.environ)
        if order == "servers":
            scores[:] = float(self._servers)
        if order == "deadline":
            scores[:] = self._deadline_s
        if order == "media":
            scores[:] = float(len(Path(prompts[0].media[argument]).read_bytes()))
        if order == "pid":
            scores = torch.full((len(videos),), float(os.getpid()), dtype=torch.float64)
        return scores


class Plain:
    """Group-wise, and with no settings."""

    clip_spec = ClipSpec()

    def score_group(self, videos: Tensor, prompt: Prompt) -> Tensor:
        return videos.flatten(1).mean(dim=1).argsort().argsort().float()
