"""Teaches a slim decoder the frames of a policy's VAE, on clips that the policy samples itself.

Of the recipe's training prompts clean latents are sampled, cut at a random place, and decoded by
the VAE: these pairs are learned. What was learned is measured on whole clips of held-out prompts.
The decoder is the VAE's, not the policy's: every policy of that VAE may use it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlvid.config import Recipe
from rlvid.config.inference import InferenceConfig
from rlvid.data.prompts import load_prompts
from rlvid.inference.measure import Job, sample_latents
from rlvid.inference.optimise import optimise
from rlvid.inference.slim_decoder import SlimDecoder, shape_between
from rlvid.inference.slim_folder import save_slim_decoder, vae_of
from rlvid.inference.slim_training import SlimTraining, random_crop, slim_psnr, train_slim_decoder
from rlvid.launch.heldout import heldout_prompts
from rlvid.launch.optimise import sampling_job
from rlvid.models.policy import Policy, open_policy
from rlvid.records import Prompt
from rlvid.seeds import derive_seed

if TYPE_CHECKING:
    from rlvid.models.base import VideoModel


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimSettings:
    """How a slim decoder is made; the defaults are for the shipped model."""

    num_clips: int = 192
    """Sampled to learn from."""
    num_heldout: int = 16
    """Clips of held-out prompts to measure on, one each."""
    batch_prompts: int = 8
    """Clips sampled together."""
    crop: int = 32
    """Latent positions that a side of what is learned from has at most."""
    width: int = 32
    num_blocks: int = 1
    """Both as in `SlimShape`."""
    training: SlimTraining = SlimTraining()
    seed: int = 0
    """Of the weights, the crops and the batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimReport:
    """A slim decoder beside its VAE on clips of held-out prompts."""

    psnr_db: float
    psnr_db_min: float
    """Of the clip that differs most."""
    vae_s: float
    """To decode a clip by itself, the median; both took turns."""
    slim_s: float
    num_parameters: int

    def describe(self) -> str:
        """Return the figures in one line."""
        return (
            f"held-out PSNR {self.psnr_db:.1f} dB against the VAE, {self.psnr_db_min:.1f} at "
            f"least; decoding a clip {1e3 * self.vae_s:.1f} -> {1e3 * self.slim_s:.1f} ms; "
            f"{self.num_parameters / 1e6:.2f} million parameters"
        )


def make_slim_decoder(
    recipe: Recipe,
    policy: Policy,
    settings: SlimSettings,
    folder: Path,
    *,
    on_clips: Callable[[int], None] = lambda _: None,
    on_step: Callable[[float], None] = lambda _: None,
) -> SlimReport:
    """Sample, train, measure and write a slim decoder.

    Args:
        folder: that `inference.slim_decoder` then names.
        on_clips: told how many clips were sampled since it was last.
        on_step: told the loss of each step.

    Raises:
        ValueError: the policy or its prompts cannot be opened, or its latents are of no shape that
            a slim decoder has.
    """
    torch.set_num_threads(recipe.cluster.threads_per_role)
    model = open_policy(policy, recipe.model)
    vae = vae_of(model)
    heldout = heldout_prompts(recipe, settings.num_heldout)
    latents, videos = _pairs(recipe, policy, model, settings, on_clips)
    shape = shape_between(latents, videos, width=settings.width, num_blocks=settings.num_blocks)
    torch.manual_seed(settings.seed)
    decoder = SlimDecoder(shape).to(model.device)
    train_slim_decoder(
        decoder, latents, videos, settings.training, seed=settings.seed, on_step=on_step
    )
    job = sampling_job(recipe, policy, model, heldout)
    report = compare_decoders(model, decoder, _sampled(model, job, settings, on_clips))
    about = {
        "policy": policy.to_json(),
        "settings": asdict(settings),
        "clip": [recipe.model.num_frames, recipe.model.height, recipe.model.width],
        "heldout": asdict(report),
    }
    save_slim_decoder(folder, decoder, vae=vae, about=about)
    return report


def training_prompts(recipe: Recipe, num_clips: int) -> tuple[tuple[Prompt, ...], int]:
    """Return prompts of the training split in an order of their own, and clips of each.

    Together they are at least `num_clips`.
    """
    prompts = load_prompts(recipe.prompts)
    order = sorted(prompts, key=lambda prompt: derive_seed(0, prompt.prompt_id, "slim_decoder"))
    return tuple(order[:num_clips]), -(-num_clips // len(prompts))


def compare_decoders(model: VideoModel, decoder: SlimDecoder, latents: Tensor) -> SlimReport:
    """Decode clips one by one with the VAE and with `decoder`.

    Args:
        latents: [N, C, F, h, w].
    """
    videos, seconds = [], []
    for one in latents.to(model.device).split(1):
        video, vae_s = _timed(model.decode, one)
        _, slim_s = _timed(decoder.decode, one)
        videos.append(video.cpu())
        seconds.append((vae_s, slim_s))
    psnr = slim_psnr(decoder, latents.to(model.device), torch.cat(videos))
    return SlimReport(
        psnr_db=float(psnr.mean()),
        psnr_db_min=float(psnr.min()),
        vae_s=statistics.median(vae_s for vae_s, _ in seconds),
        slim_s=statistics.median(slim_s for _, slim_s in seconds),
        num_parameters=sum(one.numel() for one in decoder.parameters()),
    )


def _pairs(
    recipe: Recipe,
    policy: Policy,
    model: VideoModel,
    settings: SlimSettings,
    on_clips: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Return crops of sampled latents [N, C, F, h, w] and what the VAE makes of them, in float16.

    A crop is decoded by itself, so that its edges are edges to both decoders.
    """
    prompts, num_seeds = training_prompts(recipe, settings.num_clips)
    job = sampling_job(recipe, policy, model, prompts, num_seeds=num_seeds)
    generator = torch.Generator().manual_seed(settings.seed)
    crops, videos = [], []
    for sampled in _sampled(model, job, settings, on_clips).split(settings.batch_prompts):
        crop = random_crop(sampled, settings.crop, generator)
        crops.append(crop)
        videos.append(model.decode(crop.to(model.device)).cpu().half())
    return torch.cat(crops)[: settings.num_clips], torch.cat(videos)[: settings.num_clips]


def _sampled(
    model: VideoModel, job: Job, settings: SlimSettings, on_clips: Callable[[int], None]
) -> Tensor:
    """Return the job's latents [N, C, F, h, w] on the CPU."""
    plain = optimise(model, InferenceConfig(batch_prompts=settings.batch_prompts))
    parts = []
    for part in sample_latents(plain, job):
        parts.append(part.cpu())
        on_clips(len(part))
    return torch.cat(parts)


def _timed(decode: Callable[[Tensor], Tensor], latents: Tensor) -> tuple[Tensor, float]:
    _synchronise(latents.device)
    began = time.perf_counter()
    video = decode(latents)
    _synchronise(latents.device)
    return video, time.perf_counter() - began


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
