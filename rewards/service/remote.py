"""Rewards that another process scores: what a reward service (`app.py`) says of clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards import wire
from rlvid.rewards.base import ClipSpec, Serving
from rlvid.rewards.service.media import sent_prompt
from rlvid.rewards.service.protocol import ClipGroup
from rlvid.rewards.service.remote_client import RemoteConfig, ServiceClient

__all__ = ["RemoteConfig", "RemoteGroupReward", "RemoteReward"]


class RemoteReward:
    """The weighted sum of what scorers of a reward service say of each clip.

    Several entries of a recipe may ask one service for different scorers of it.
    """

    Config = RemoteConfig

    def __init__(self, config: RemoteConfig) -> None:
        self._client = ServiceClient(config, is_group_wise=False)
        self.clip_spec = ClipSpec(fps=config.fps)
        self.serving = _serving(config)
        self.version = self._client.version
        self._fps = config.fps

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] in [0, 1] -> [B]; each clip is a group of its own."""
        frames = _levels(videos)
        groups = [
            _group(f"g{n}", frames[n : n + 1], prompt, self._fps)
            for n, prompt in enumerate(prompts)
        ]
        return torch.tensor(self._client.score(groups), dtype=torch.float32)


class RemoteGroupReward:
    """The same for scorers that judge the clips of one prompt together."""

    Config = RemoteConfig

    def __init__(self, config: RemoteConfig) -> None:
        self._client = ServiceClient(config, is_group_wise=True)
        self.clip_spec = ClipSpec(fps=config.fps)
        self.serving = _serving(config)
        self.version = self._client.version
        self._fps = config.fps

    def score_group(self, videos: Tensor, prompt: Prompt) -> Tensor:
        """[G, T, 3, H, W] in [0, 1] of one prompt -> [G]."""
        group = _group("g0", _levels(videos), prompt, self._fps)
        return torch.tensor(self._client.score([group]), dtype=torch.float32)


def _serving(config: RemoteConfig) -> Serving:
    """The pool must not give up before the client does; waiting takes next to no CPU."""
    return Serving(deadline_s=config.deadline_s + 10.0, num_cpus=0.1)


def _levels(videos: Tensor) -> Tensor:
    """[B, T, 3, H, W] float in [0, 1] -> [B, T, H, W, 3] uint8."""
    levels = (videos * 255.0).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 1, 3, 4, 2).contiguous()


def _group(name: str, frames: Tensor, prompt: Prompt, fps: int) -> ClipGroup:
    sent = wire.array(frames)
    return ClipGroup(
        group_id=name,
        prompt=sent_prompt(prompt),
        clip_ids=[f"c{n}" for n in range(len(frames))],
        fps=float(fps),
        frames=wire.Array(**{**sent, "data": bytes(sent["data"])}),
    )
