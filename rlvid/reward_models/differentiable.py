"""Rewards whose gradient reaches the pixels, for reward back-propagation (`algorithm.use: refl`).

They run on the learner, beside the policy: a scorer of the pool hands out a number, and a number
has no gradient. The networks are frozen. Letters: B clips, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import ValidationError
from torch import Tensor

from rlvid.config.algorithm import DifferentiableRewardConfig
from rlvid.config.base import Section
from rlvid.config.errors import describe_one
from rlvid.models.tiny import reward_model_folder, video_text_folder
from rlvid.models.tiny.video_text_network import VideoTextNetwork
from rlvid.plugins import resolve
from rlvid.reward_models import PARTS
from rlvid.reward_models.folder import load_reward_model

SHIPPED = "tiny"
WHERE = "algorithm.refl.reward"
DIFFERENTIABLE: Mapping[str, str] = {
    "trained_reward": "rlvid.reward_models.differentiable:TrainedRewardGradient",
    "video_text": "rlvid.reward_models.differentiable:VideoTextGradient",
}
"""Short name of `algorithm.refl.reward.use` to its class."""


@runtime_checkable
class DifferentiableReward(Protocol):
    """A reward with a gradient.

    A class with a nested `Config`, derived from `rlvid.config.base.Section`; it is called with that
    Config and the device of the policy.
    """

    def rewards(self, videos: Tensor, texts: Sequence[str]) -> Tensor:
        """Videos [B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B], higher is better.

        Differentiable in the videos; no row may depend on another.
        """
        ...


class TrainedRewardGradient:
    """What the `reward_model` phase trained: a z-scored part, or the sum of all (overall).

    Unbounded, and blind to what its pairs did not show: a policy is led out of its clips faster by
    its gradient than by its verdicts, so train with judges beside it, or with a target.
    """

    class Config(Section):
        """Settings."""

        folder: str = SHIPPED
        """What the reward_model phase wrote, or "tiny", the model that ships with rlvid."""
        part: Literal["overall", "VQ", "MQ", "TA"] = "overall"

    def __init__(self, config: Config, device: torch.device) -> None:
        is_shipped = config.folder == SHIPPED
        folder = reward_model_folder() if is_shipped else Path(config.folder).expanduser()
        self._trained = load_reward_model(folder, where=f"{WHERE}.config.folder", device=device)
        self._part = config.part

    def rewards(self, videos: Tensor, texts: Sequence[str]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B]; the clips it was trained on."""
        clip = self._trained.clip
        expected = (clip.num_frames, 3, clip.height, clip.width)
        if tuple(videos.shape[1:]) != expected:
            raise ValueError(
                f"{WHERE}: trained_reward judges clips of {expected} (frames, colours, height, "
                f"width), as it was trained on, got {tuple(videos.shape[1:])}. Set the model's "
                "num_frames, height and width to them, or train one on clips of this size."
            )
        mean = self._trained.model(videos, texts).mean
        chosen = PARTS if self._part == "overall" else (self._part,)
        scores = self._trained.z_scores
        values = [
            (mean[:, PARTS.index(part)] - scores[part].mean) / scores[part].std for part in chosen
        ]
        return torch.stack(values).sum(dim=0)


class VideoTextGradient:
    """How well clip and sentence belong together, by the video-text network of the tiny world."""

    class Config(Section):
        """Settings."""

        folder: str = SHIPPED
        """Where the weights are, or "tiny", the network that ships with rlvid."""
        score: Literal["cosine", "logit"] = "cosine"
        """logit: of the trained scale, some fifty times as steep."""

    def __init__(self, config: Config, device: torch.device) -> None:
        folder = video_text_folder() if config.folder == SHIPPED else Path(config.folder)
        self._network = VideoTextNetwork.load(folder).to(device)
        self._score = config.score

    def rewards(self, videos: Tensor, texts: Sequence[str]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B]; other sizes are resampled."""
        clips, sentences = self._network.embed_videos(videos), self._network.embed_texts(texts)
        cosine = (clips * sentences).sum(dim=-1)
        if self._score == "cosine":
            return cosine
        return self._network.log_scale.exp() * cosine + self._network.bias


def open_differentiable(
    config: DifferentiableRewardConfig, *, device: torch.device
) -> DifferentiableReward:
    """Return the reward that the recipe names, on `device`.

    Raises:
        ValueError: unknown name, unknown or badly typed setting, or no `rewards` method.
    """
    factory: Any = resolve(config.use, DIFFERENTIABLE, where=f"{WHERE}.use")
    settings = getattr(factory, "Config", None)
    if not isinstance(settings, type) or not issubclass(settings, Section):
        raise ValueError(
            f"{WHERE}.use: {config.use!r} is no differentiable reward: expected a class with a "
            f"nested Config derived from rlvid.config.base.Section, got {settings!r}. Scorers of "
            f"the pool have no gradient; known: {', '.join(sorted(DIFFERENTIABLE))}."
        )
    try:
        chosen = settings.model_validate(config.config)
    except ValidationError as error:
        line = describe_one(error.errors(include_url=False)[0], settings)
        raise ValueError(f"{WHERE}.config.{line}") from error
    reward = factory(chosen, device)
    if not isinstance(reward, DifferentiableReward):
        raise ValueError(
            f"{WHERE}.use: {config.use!r} has no method rewards(videos, texts); see "
            "rlvid.reward_models.differentiable.DifferentiableReward."
        )
    return reward
