"""DMD2's discriminator: a head on the features of the fake score, and trained with it.

The head is a part of the fake score's transformer, so optimiser, sharding and checkpoints take it
along; that transformer is never exported. The student's gradient is taken for its clips alone, so
none of it reaches the fake score's parameters.

Letters: B clips, C F H W latents, S tokens, D width of the transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlvid.algorithms.flow_matching import add_noise
from rlvid.algorithms.gan import (
    fake_logit_loss,
    real_logit_loss,
    scaled_gan_gradient,
    student_gan_gradient,
)
from rlvid.condition import Condition
from rlvid.config.distillation import GanConfig
from rlvid.learners.distill import StageLearner, with_transformer
from rlvid.learners.distill_clips import CleanClips
from rlvid.learners.trainee import Trainee
from rlvid.models.base import VideoModel

NAME = "discriminator"
"""Of the head among the transformer's modules."""


class Head(nn.Module):
    """Tokens to one logit; positive says real. In float32, as the features of bfloat16 are not."""

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_features)
        self.hidden = nn.Linear(num_features, width)
        self.logit = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """[B, S, D] -> [B]; a token judges its place, and the clip's logit is their mean."""
        tokens = nn.functional.silu(self.hidden(self.norm(features.float())))
        logit: Tensor = self.logit(tokens.mean(dim=1))[:, 0]
        return logit


class GanTerm:
    """What the term adds to the turns of student and fake score; a stage asks it where it is on."""

    def __init__(self, stage: StageLearner, fake: Trainee, config: GanConfig) -> None:
        """Open the real clips; a collective of all ranks.

        Args:
            fake: the fake score, wrapped with the head of `add_head` in it.
        """
        self._config = config
        self._clips = CleanClips(stage, config, place=f"{stage.settings.stage}.gan")
        self._encode_prompts = stage.trainee.model.encode_prompts
        self._fake = fake.model
        # The engine must not take the student's turn for a step of its own.
        self._bare = with_transformer(fake.model, fake.engine.transformer)
        blocks = _blocks(fake.engine.transformer)
        self._block = blocks[judged_block(len(blocks), config.block)]
        self._head: Any = getattr(fake.engine.transformer, NAME)

    def student_gradient(
        self, clean: Tensor, noise: Tensor, sigma: Tensor, condition: Condition
    ) -> Tensor:
        """Return the weighted gradient of the student's term with respect to its clips.

        In the scale of `dmd_gradient`, [B, C, F, H, W], without gradient of its own.

        Args:
            clean: [B, C, F, H, W] of the student.
            noise, sigma: what `clean` is shown with.
        """
        leaf = clean.detach().requires_grad_()
        _, logit = self._judged(self._bare, add_noise(leaf, noise, sigma), sigma, condition)
        return scaled_gan_gradient(student_gan_gradient(logit, leaf), self._config.weight)

    def real_losses(self, step: int, rows: Sequence[int], noise: Tensor, sigma: Tensor) -> Tensor:
        """Return the weighted loss [len(rows)] of the discriminator on real clips of a step.

        Layers behind the judged one get a gradient of 0 rather than none: ZeRO 3 would add to what
        is left of the step before, and 1 and 2 sum over ranks in the last backward alone.
        """
        clean, texts = self._clips.of(step, rows)
        latents = add_noise(clean, noise, sigma)
        velocity, logit = self._judged(self._fake, latents, sigma, self._encode_prompts(texts))
        reaches_all = 0.0 * velocity.flatten(1).sum(dim=1)
        return self._config.discriminator_weight * real_logit_loss(logit) + reaches_all

    def fake_losses(
        self, latents: Tensor, sigma: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """Return the fake score's velocity at noised clips of the student, and the weighted loss.

        One forward for both: [B, C, F, H, W] and [B].
        """
        velocity, logit = self._judged(self._fake, latents, sigma, condition)
        return velocity, self._config.discriminator_weight * fake_logit_loss(logit)

    def _judged(
        self, model: VideoModel, latents: Tensor, sigma: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """Return the velocity [B, C, F, H, W] and the logit [B] of one forward."""
        found: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            found.append(output)

        handle = self._block.register_forward_hook(keep)
        try:
            velocity = model.velocity(latents, sigma, condition)
        finally:
            handle.remove()
        return velocity, self._head(found[0])


def add_head(transformer: nn.Module, config: GanConfig, *, seed: int) -> None:
    """Put a head into a bare transformer, before it is wrapped; its start follows from the seed."""
    judged_block(len(_blocks(transformer)), config.block)
    size: Any = transformer.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(size.num_attention_heads * size.attention_head_dim, config.width)
    transformer.add_module(NAME, head.to(next(transformer.parameters()).device))


def judged_block(num_blocks: int, block: int | None) -> int:
    """Return the layer whose output is read; the middle one when none is named."""
    place = num_blocks // 2 if block is None else block
    if place >= num_blocks:
        raise ValueError(
            f"gan.block: expected 0 to {num_blocks - 1}, a layer of the transformer, got {block}"
        )
    return place


def _blocks(transformer: nn.Module) -> Sequence[nn.Module]:
    """Return the layers of a transformer.

    Raises:
        ValueError: it keeps them under another name than Wan's.
    """
    if not isinstance(getattr(transformer, "blocks", None), nn.ModuleList):
        raise ValueError(
            f"gan: {type(transformer).__name__} has no list of layers named blocks: expected a Wan "
            "transformer. Set gan.weight to 0"
        )
    blocks: Any = transformer.blocks
    layers: Sequence[nn.Module] = blocks
    return layers
