"""Teaches a slim decoder the frames that a VAE makes of clean latents.

The loss is L1 on pixels, the squared error beside it, since L1 alone is slow to find what is small
and moves, and a little L1 on what changes from frame to frame, without which still parts flicker.
There is no adversarial term, so what the VAE itself makes up stays a little soft.

Letters: N clips, B batch, C F h w latents, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvid.inference.measure import psnr_db
from rlvid.inference.slim_decoder import SlimDecoder
from rlvid.learning_rate import warmup_cosine


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimTraining:
    """How a slim decoder is trained; the defaults are for the shipped model's clips."""

    num_steps: int = 3000
    batch_size: int = 4
    learning_rate: float = 3e-3
    """Peak of a linear warm-up over 5% of the steps and a cosine down to a hundredth."""
    squared_weight: float = 2.0
    """Of the squared error beside the absolute one; what the shipped VAE was trained with."""
    difference_weight: float = 0.2
    """Of the error's change from frame to frame."""
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"slim decoder: {name}: expected at least 1, got {getattr(self, name)}"
                )


def random_crop(latents: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """[B, C, F, h, w] -> [B, C, F, at most side, at most side], all cut at one place.

    In time a crop begins with the clip: the first latent frame is of another kind.
    """
    for dim in (3, 4):
        size = min(side, latents.shape[dim])
        start = int(torch.randint(latents.shape[dim] - size + 1, (1,), generator=generator))
        latents = latents.narrow(dim, start, size)
    return latents


def train_slim_decoder(
    decoder: SlimDecoder,
    latents: Tensor,
    videos: Tensor,
    training: SlimTraining,
    *,
    seed: int,
    on_step: Callable[[float], None] = lambda _: None,
) -> None:
    """Train `decoder` in place, where its weights lie, and leave it frozen.

    Args:
        latents: [N, C, F, h, w] of unit scale.
        videos: [N, T, 3, H, W] in [0, 1], what the VAE makes of them.
        on_step: told the loss of each step.
    """
    generator = torch.Generator().manual_seed(seed)
    decoder.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=training.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, training.num_steps)
    )
    device = decoder.leave.weight.device
    for _ in range(training.num_steps):
        rows = torch.randint(len(latents), (training.batch_size,), generator=generator)
        frames, _ = decoder(latents[rows].to(device))
        loss = slim_loss(frames, videos[rows].to(device), training)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), training.max_grad_norm)
        optimizer.step()
        schedule.step()
        on_step(loss.item())
    decoder.requires_grad_(False).eval()


def slim_loss(frames: Tensor, videos: Tensor, training: SlimTraining) -> Tensor:
    """Return the scalar loss of a batch, d being `frames` less `videos`, [B, T, 3, H, W] both.

        mean(|d| + squared_weight d^2) + difference_weight mean |d_t - d_(t-1)|

    `frames` are not clamped: a pixel beyond the range has a gradient that leads back.
    """
    error = frames - videos
    loss = (error.abs() + training.squared_weight * error.square()).mean()
    if error.shape[1] > 1:
        loss = loss + training.difference_weight * (error[:, 1:] - error[:, :-1]).abs().mean()
    return loss


@torch.no_grad()
def slim_psnr(decoder: SlimDecoder, latents: Tensor, videos: Tensor) -> Tensor:
    """Return [N] PSNR in dB of a slim decoder's clips against the VAE's."""
    decoded = [decoder.decode(one[None]).cpu() for one in latents]
    return psnr_db(torch.cat(decoded), videos.cpu())
