"""The sleeping twin of a scorer: it costs what it is told to cost and fails as often as told.

For measuring the machinery around scorers (overlap, scaling, faults) with costs that are known. Its
scores follow from the pixels alone, so any two runs over the same clips get the same ones, whatever
fails on the way; which calls fail is drawn from clip and attempt, so that trying again can help.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import xxhash
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec


class Sleeping:
    """Sleeps, then returns a number in [0, 1) that is a hash of the clip."""

    clip_spec = ClipSpec()

    class Config(BaseModel):
        """Costs, and rates of failures in [0, 1]."""

        model_config = ConfigDict(extra="forbid", frozen=True)

        score_s: float = Field(default=0.0, ge=0.0)
        """Seconds of sleep."""
        per: Literal["call", "clip"] = "clip"
        """What takes `score_s`: each clip, or each call (a group, where calls are groups)."""
        raise_frac: float = Field(default=0.0, ge=0.0, le=1.0)
        """Share of the attempts that raise; a clip is tried again elsewhere or later."""
        nan_frac: float = Field(default=0.0, ge=0.0, le=1.0)
        """Share of the clips that are NaN, at every attempt: a verdict, not a failure."""
        seed: int = 0
        """Of the failures."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._attempts: Counter[int] = Counter()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, C, H, W], B prompts -> [B] in [0, 1), NaN for some.

        Raises:
            RuntimeError: an attempt that `raise_frac` made fail, after its sleep.
        """
        config = self._config
        time.sleep(config.score_s * (len(videos) if config.per == "clip" else 1))
        digests = [xxhash.xxh3_64_intdigest(_bytes_of(video)) for video in videos]
        for digest in digests:
            self._attempts[digest] += 1
            if self._draw(digest, f"raise {self._attempts[digest]}") < config.raise_frac:
                raise RuntimeError(f"sleeping: attempt {self._attempts[digest]} was made to fail")
        values = [
            float("nan") if self._draw(digest, "nan") < config.nan_frac else _unit(digest)
            for digest in digests
        ]
        return torch.tensor(values, dtype=torch.float32)

    def _draw(self, digest: int, what: str) -> float:
        """Return a number in [0, 1) of the clip, the seed and what is decided."""
        text = f"{self._config.seed} {digest} {what}"
        return _unit(xxhash.xxh3_64_intdigest(text.encode()))


def _bytes_of(video: Tensor) -> bytes:
    pixels: np.ndarray = np.ascontiguousarray(video.detach().cpu().numpy())
    return pixels.tobytes()


def _unit(digest: int) -> float:
    """64 bits -> [0, 1), exact in float32: the upper 24 of them."""
    return (digest >> 40) / 2.0**24
