"""Clips with the prompts they claim to show: what scorers are calibrated on."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlvid.data.tiny_world import all_facts, breakages_for, caption, render_clip, split_of
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, GroupReward, Reward, RewardError
from rlvid.seeds import derive_seed, prompt_id

logger = logging.getLogger(__name__)

HELDOUT_SEEDS = 100_000
"""First seed of held-out clips; scorers are tuned on smaller ones only."""
NUM_SEEDS = 90_000
LUMA = (0.2126, 0.7152, 0.0722)
"""Rec. 709, as `ClipSpec.colour` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSet:
    """Clips with the captions they claim to show."""

    videos: Tensor
    """[N, T, 3, H, W] float32 in [0, 1]."""
    prompts: tuple[Prompt, ...]
    fps: int = 8

    @classmethod
    def draw(cls, breakage: str | None, num_clips: int, *, seed: int, split: str) -> ClipSet:
        """Render clips of random captions of the split on which the breakage can be seen."""
        known = [
            facts
            for facts in all_facts()
            if split_of(facts) == split and (breakage is None or breakage in breakages_for(facts))
        ]
        rng = np.random.default_rng(derive_seed(seed, "calibrate", split, str(breakage)))
        chosen = [known[int(n)] for n in rng.integers(len(known), size=num_clips)]
        first = HELDOUT_SEEDS if split == "heldout" else 0
        seeds = [first + int(n) for n in rng.integers(NUM_SEEDS, size=num_clips)]
        clips = [render_clip(f, s, breakage=breakage) for f, s in zip(chosen, seeds, strict=True)]
        prompts = tuple(
            Prompt(prompt_id=prompt_id(caption(facts)), text=caption(facts), facts=facts)
            for facts in chosen
        )
        return cls(videos=torch.stack(clips), prompts=prompts)

    def scores(self, scorer: Reward | GroupReward) -> Tensor:
        """[N]; a group-wise scorer sees each clip as a group of its own.

        A clip on which the scorer raises RewardError is missing, as it would be in the pool.
        """
        videos = self._as_declared(scorer.clip_spec)
        if isinstance(scorer, GroupReward):
            pairs = zip(videos, self.prompts, strict=True)
            return torch.cat([scorer.score_group(video[None], prompt) for video, prompt in pairs])
        return scores_of(scorer, videos, self.prompts)

    def _as_declared(self, spec: ClipSpec) -> Tensor:
        """Return the clips in the colour and range that the scorer asks for."""
        if spec.fps not in (None, self.fps):
            raise ValueError(
                f"calibrate: the scorer takes clips at {spec.fps} fps, the task has {self.fps}. "
                "Give the scorer's fps in its config or claim another task."
            )
        videos = self.videos
        if spec.colour == "grey":
            weights = torch.tensor(LUMA)[:, None, None]
            videos = (videos * weights).sum(dim=2, keepdim=True)
        low, high = spec.value_range
        return videos if (low, high) == (0.0, 1.0) else low + (high - low) * videos


def scores_of(scorer: Reward, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """[B, T, C, H, W] -> [B]; NaN for the clips on which the scorer fails alone as well.

    Raises:
        RewardError: it fails on every clip; the first reason.
    """
    try:
        return scorer.score(videos, prompts)
    except RewardError as error:
        if len(videos) == 1:
            raise
        found = [_score_or_nan(scorer, v, p) for v, p in zip(videos, prompts, strict=True)]
        scores = torch.tensor(found, dtype=torch.float32)
        if bool(scores.isnan().all()):
            raise error
        return scores


def _score_or_nan(scorer: Reward, video: Tensor, prompt: Prompt) -> float:
    try:
        return float(scorer.score(video[None], [prompt])[0])
    except RewardError as error:
        logger.warning("clip not judged: %s", error)
        return math.nan
