"""Rewards with a gradient say what the pool's scorers of the same networks say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.config.algorithm import DifferentiableRewardConfig
from rlvid.data.tiny_world import all_facts, caption, render_clip
from rlvid.records import Prompt
from rlvid.reward_models.differentiable import open_differentiable
from rlvid.rewards.critics.trained_reward import TrainedReward
from rlvid.rewards.specialists.video_text import VideoText

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clips() -> tuple[Tensor, list[str]]:
    facts = all_facts()[::97][:3]
    return torch.stack([render_clip(one, 7) for one in facts]), [caption(one) for one in facts]


def opened(use: str, **config: Any) -> Any:
    return open_differentiable(DifferentiableRewardConfig(use=use, config=config), device=CPU)


@pytest.mark.parametrize("part", ["overall", "VQ", "MQ", "TA"])
def test_trained_reward_agrees_with_its_scorer(clips: tuple[Tensor, list[str]], part: Any) -> None:
    videos, texts = clips
    scorer = TrainedReward(TrainedReward.Config(part=part))
    expected = scorer.score(videos, [Prompt(prompt_id="p", text=text) for text in texts])
    found = opened("trained_reward", part=part).rewards(videos, texts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_video_text_agrees_with_its_scorer(clips: tuple[Tensor, list[str]]) -> None:
    videos, texts = clips
    expected = VideoText(VideoText.Config()).score(
        videos, [Prompt(prompt_id="p", text=text) for text in texts]
    )
    torch.testing.assert_close(opened("video_text").rewards(videos, texts), expected)
    logits = opened("video_text", score="logit").rewards(videos, texts)
    assert (logits.argsort() == expected.argsort()).all()


@pytest.mark.parametrize("use", ["trained_reward", "video_text"])
def test_gradient_reaches_every_clip_and_no_weight(
    clips: tuple[Tensor, list[str]], use: str
) -> None:
    """And a step along it raises the reward."""
    videos, texts = clips
    reward = opened(use)
    wanted = videos.clone().requires_grad_()
    before = reward.rewards(wanted, texts)
    (gradient,) = torch.autograd.grad(before.sum(), wanted)
    length = gradient.flatten(1).norm(dim=1)
    assert (length > 0.0).all()
    moved = videos + 0.1 * gradient / length.view(-1, 1, 1, 1, 1)
    assert (reward.rewards(moved, texts) > before).all()


def test_other_clips_than_it_was_trained_on_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(17, 3, 32, 32\).* got \(9, 3, 16, 16\)"):
        opened("trained_reward").rewards(torch.zeros(1, 9, 3, 16, 16), ["a red ball"])


@pytest.mark.parametrize(
    ("use", "config", "expected"),
    [
        ("video_txt", {}, "did you mean 'video_text'"),
        ("video_text", {"skore": "logit"}, "algorithm.refl.reward.config.skore"),
        ("rlvid.rewards.critics.trained_reward:TrainedReward", {}, "no differentiable reward"),
        (f"{__name__}:Silent", {}, "has no method rewards"),
    ],
)
def test_what_is_none_is_named(use: str, config: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        opened(use, **config)


class Silent:
    """Has settings, and nothing to say."""

    from rlvid.config.base import Section as Config

    def __init__(self, config: Any, device: torch.device) -> None:
        pass
