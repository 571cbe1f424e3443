"""Training of a slim decoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlvid.inference.slim_decoder import SlimDecoder, SlimShape
from rlvid.inference.slim_training import (
    SlimTraining,
    random_crop,
    slim_loss,
    slim_psnr,
    train_slim_decoder,
)

SHAPE = SlimShape(channels=4, temporal=2, spatial=4, width=8, num_blocks=1)


def pairs() -> tuple[Tensor, Tensor]:
    """Clips whose brightness is that of their latents."""
    latents = torch.rand(4, 1, 3, 2, 2).expand(4, 4, 3, 2, 2) * 2.0 - 1.0
    frames = (latents[:, :1] / 2.0 + 0.5).repeat_interleave(2, dim=2)[:, :, 1:]
    videos = frames.repeat_interleave(4, 3).repeat_interleave(4, 4).transpose(1, 2)
    return latents, videos.expand(-1, -1, 3, -1, -1)


def test_training_nears_the_clips_and_is_the_same_again() -> None:
    torch.manual_seed(0)
    latents, videos = pairs()
    training, found = SlimTraining(num_steps=60, batch_size=4, learning_rate=5e-3), []
    for _ in range(2):
        torch.manual_seed(0)
        decoder, losses = SlimDecoder(SHAPE), list[float]()
        before = slim_psnr(decoder, latents, videos).mean()
        train_slim_decoder(decoder, latents, videos, training, seed=0, on_step=losses.append)
        found.append(decoder.state_dict())
        assert len(losses) == 60
        assert slim_psnr(decoder, latents, videos).mean() > before + 6.0
        assert not any(one.requires_grad for one in decoder.parameters())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_loss_counts_flicker_and_not_an_even_error() -> None:
    training = SlimTraining(squared_weight=2.0, difference_weight=0.5)
    videos = torch.zeros(1, 4, 3, 2, 2)
    even, flicker = videos + 0.1, videos + 0.1
    flicker[:, ::2] *= -1.0
    assert slim_loss(even, videos, training).item() == pytest.approx(0.12)
    assert slim_loss(flicker, videos, training).item() == pytest.approx(0.12 + 0.5 * 0.2)
    assert slim_loss(even[:, :1], videos[:, :1], training).item() == pytest.approx(0.12)


def test_crops_begin_with_the_clip_and_lie_anywhere_in_the_picture() -> None:
    latents = torch.arange(6.0 * 5.0).reshape(1, 1, 1, 6, 5).expand(2, 1, 3, 6, 5)
    generator = torch.Generator().manual_seed(0)
    crops = [random_crop(latents, 3, generator) for _ in range(40)]
    assert {crop.shape for crop in crops} == {(2, 1, 3, 3, 3)}
    assert len({crop[0, 0, 0, 0, 0].item() for crop in crops}) == 12, "all of 4 times 3 places"
    assert torch.equal(random_crop(latents, 8, generator), latents)


def test_empty_training_is_refused() -> None:
    with pytest.raises(ValueError, match="num_steps: expected at least 1, got 0"):
        SlimTraining(num_steps=0)
