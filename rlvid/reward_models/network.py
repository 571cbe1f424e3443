"""A reward model: backbone, head, and the judgement they give.

Letters: B clips, T frames, H W pixels, P parts, D features of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlvid.config.reward_model import BackboneConfig, RewardModelConfig
from rlvid.reward_models import PARTS
from rlvid.reward_models.losses import labelled_mean, spread_loss, ties_loss
from rlvid.reward_models.video_encoder import VideoEncoder

if TYPE_CHECKING:
    from rlvid.reward_models.vlm import VlmBackbone

MIN_SPREAD = 0.05
"""Floor of a spread: without it a model that is sure of its training pairs divides by almost 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a reward model says of clips, before z-scoring."""

    mean: Tensor
    """[B, P] float32."""
    spread: Tensor | None
    """[B, P] standard deviations; None where the head has none."""

    def rows(self, index: Tensor) -> Judgement:
        """Return the judgement of some of the clips."""
        spread = None if self.spread is None else self.spread[index]
        return Judgement(mean=self.mean[index], spread=spread)


class RewardModel(nn.Module):
    """Backbone and one linear head a part."""

    def __init__(self, backbone: nn.Module, feature_size: int, *, has_spread: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.has_spread = has_spread
        self.head = nn.Parameter(torch.zeros(len(PARTS), feature_size, 2 if has_spread else 1))
        nn.init.normal_(self.head, std=feature_size**-0.5)
        if has_spread:
            with torch.no_grad():
                self.head[..., 1].zero_()  # every clip starts with the same spread

    def forward(self, videos: Tensor, texts: Sequence[str]) -> Judgement:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> the judgement of B clips."""
        features = self.backbone(videos, texts).float()
        numbers = torch.einsum("bpd,pdn->bpn", features, self.head)
        if not self.has_spread:
            return Judgement(mean=numbers[..., 0], spread=None)
        return Judgement(
            mean=numbers[..., 0], spread=MIN_SPREAD + functional.softplus(numbers[..., 1])
        )

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return what training changes and a folder keeps, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def pair_loss(first: Judgement, second: Judgement, label: Tensor, *, tie_k: float) -> Tensor:
    """Return the mean loss of pairs over their labelled parts; the head decides which loss."""
    if first.spread is None or second.spread is None:
        losses = ties_loss(first.mean - second.mean, label, tie_k)
    else:
        losses = spread_loss(first.mean, second.mean, first.spread, second.spread, label)
    return labelled_mean(losses, label)


def build_reward_model(
    config: RewardModelConfig, *, vocabulary: Sequence[str], fps: float, seed: int
) -> RewardModel:
    """Return an untrained reward model whose `requires_grad` says what is trained.

    Args:
        vocabulary: of the video encoder's prompts.
        fps: of the clips, which a VLM is told.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _backbone(config.backbone, vocabulary, fps, seed)
        return RewardModel(backbone, backbone.feature_size, has_spread=config.head == "spread")


def _backbone(
    config: BackboneConfig, vocabulary: Sequence[str], fps: float, seed: int
) -> VlmBackbone | VideoEncoder:
    if config.use == "vlm":
        from rlvid.reward_models.vlm import open_vlm_backbone

        return open_vlm_backbone(config, fps=fps, seed=seed)
    encoder = VideoEncoder(vocabulary, config.width)
    if config.train == "head":
        encoder.requires_grad_(False)
    return encoder
