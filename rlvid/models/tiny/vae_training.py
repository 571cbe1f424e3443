"""Trains the tiny model's VAE on clips and measures the scale of its latents.

Letters: N clips, B batch, T pixel frames, H W pixels, C F h w latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from rlvid.learning_rate import warmup_cosine

_STATISTICS_CLIPS = 512
"""Clips that the latents' mean and std are measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeTraining:
    """How the VAE is trained; the defaults made the shipped one."""

    num_steps: int = 3600
    batch_size: int = 8
    learning_rate: float = 2e-3
    """Peak of a linear warm-up over 5% of the steps and a cosine down to a hundredth."""
    kl_weight: float = 1e-4
    """Nats per latent element against the weighted L1 in [-1, 1] pixels. Small: it only keeps the
    latents from growing and the decoder from relying on their last digits."""
    squared_weight: float = 2.0
    """Weight of the squared error beside the absolute one; alone, L1 is slow to find colours."""
    window_frames: int = 9
    """Clips are cut to this many frames, twice as fast as whole ones, but for the last steps."""
    whole_clip_frac: float = 0.2
    """Share of the steps, at the end, that see whole clips."""
    colour_weight: float = 4.0
    """Extra weight of a fully saturated pixel: the moving object is a few percent of the pixels."""
    max_grad_norm: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeMetrics:
    """What the trained VAE does to clips it has not seen."""

    psnr_db: float
    """Of decode(encode(clip)), all pixels."""
    object_psnr_db: float
    """Of the saturated pixels, which are the object's."""
    latents_std: float
    """Root mean square over channels, before normalisation."""


def train_vae(
    vae: AutoencoderKLWan,
    clips: Tensor,
    *,
    training: VaeTraining | None = None,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train `vae` in place and write the latents' mean and std into its configuration.

    Args:
        clips: [N, T, 3, H, W] uint8.
        on_step: told the step and its loss.
    """
    training = training or VaeTraining()
    generator = torch.Generator().manual_seed(seed)
    vae.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=training.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, training.num_steps)
    )
    for step in range(training.num_steps):
        batch = _draw_batch(clips, step, training, generator)
        loss = vae_loss(vae, to_pixels(batch), training, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), training.max_grad_norm)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step, loss.item())
    vae.requires_grad_(False).eval()
    set_latents_statistics(vae, clips[:_STATISTICS_CLIPS])


def _draw_batch(
    clips: Tensor, step: int, training: VaeTraining, generator: torch.Generator
) -> Tensor:
    """Return [B, T or fewer, 3, H, W] of random clips, cut at a random frame."""
    batch = clips[torch.randint(len(clips), (training.batch_size,), generator=generator)]
    spare = clips.shape[1] - training.window_frames
    if spare <= 0 or step >= training.num_steps * (1.0 - training.whole_clip_frac):
        return batch
    start = int(torch.randint(spare + 1, (1,), generator=generator))
    return batch[:, start : start + training.window_frames]


def vae_loss(
    vae: AutoencoderKLWan, pixels: Tensor, training: VaeTraining, generator: torch.Generator
) -> Tensor:
    """Return the scalar loss of a batch.

        mean(w |d|) + squared_weight mean(w d^2) + kl_weight KL(q(z|x) || N(0, 1)),

    with z ~ q(z|x), d = decode(z) - x and w = 1 + colour_weight * saturation of x, normalised to
    mean 1 over the batch.

    Args:
        pixels: [B, 3, T, H, W] in [-1, 1].
    """
    posterior = vae.encode(pixels, return_dict=False)[0]
    noise = torch.randn(posterior.mean.shape, generator=generator)
    decoded = vae.decode(posterior.mean + posterior.std * noise, return_dict=False)[0]
    weight = 1.0 + training.colour_weight * saturation(pixels)
    error = (decoded - pixels).abs()
    distance = (error + training.squared_weight * error.square()) * (weight / weight.mean())
    nats = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar)
    loss: Tensor = distance.mean() + training.kl_weight * nats.mean()
    return loss


def saturation(pixels: Tensor) -> Tensor:
    """[B, 3, T, H, W] in [-1, 1] -> [B, 1, T, H, W]: largest minus smallest channel, in [0, 1]."""
    return (pixels.amax(dim=1, keepdim=True) - pixels.amin(dim=1, keepdim=True)) / 2.0


def to_pixels(clips: Tensor) -> Tensor:
    """[B, T, 3, H, W] uint8 -> [B, 3, T, H, W] float32 in [-1, 1]."""
    return clips.permute(0, 2, 1, 3, 4).float().div(127.5).sub(1.0)


@torch.no_grad()
def set_latents_statistics(vae: AutoencoderKLWan, clips: Tensor) -> None:
    """Write mean and std of each latent channel over `clips` into the VAE's configuration.

    The sampler starts from unit noise, so the latents it ends at must have unit scale; WanModel and
    WanPipeline both read these two lists.
    """
    modes = [vae.encode(to_pixels(batch), return_dict=False)[0].mode() for batch in clips.split(16)]
    channels = torch.cat(modes).transpose(0, 1).flatten(1)
    vae.register_to_config(
        latents_mean=channels.mean(dim=1).tolist(), latents_std=channels.std(dim=1).tolist()
    )


@torch.no_grad()
def measure_vae(vae: AutoencoderKLWan, clips: Tensor) -> VaeMetrics:
    """Return how well `vae` reconstructs `clips`, [N, T, 3, H, W] uint8."""
    squared: list[Tensor] = []
    squared_object: list[Tensor] = []
    for batch in clips.split(16):
        pixels = to_pixels(batch)
        mode = vae.encode(pixels, return_dict=False)[0].mode()
        error = ((vae.decode(mode, return_dict=False)[0] - pixels) / 2.0).square().mean(dim=1)
        squared.append(error.flatten())
        squared_object.append(error[saturation(pixels)[:, 0] > 0.3])
    std = torch.tensor(vae.config.latents_std)
    return VaeMetrics(
        psnr_db=_psnr_db(torch.cat(squared)),
        object_psnr_db=_psnr_db(torch.cat(squared_object)),
        latents_std=float(std.square().mean().sqrt()),
    )


def _psnr_db(squared: Tensor) -> float:
    return -10.0 * math.log10(float(squared.mean()))
