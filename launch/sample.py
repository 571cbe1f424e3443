"""One prompt to one clip, with the deterministic sampler of evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from rlvid.config import ModelConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import initial_noise, sample_ode
from rlvid.flow.sigmas import shifted_sigmas
from rlvid.models.policy import Policy, open_policy


@torch.no_grad()
def sample_clip(
    text: str,
    policy: Policy,
    model_config: ModelConfig,
    *,
    seed: int,
    num_denoising_steps: int,
    shift: float,
    guidance_scale: float,
) -> Tensor:
    """Return the clip [T, 3, H, W] in [0, 1] that the policy draws for `text` from `seed`."""
    model = open_policy(policy, model_config)
    size = (model_config.num_frames, model_config.height, model_config.width)
    noise = initial_noise(seed, model.latent_shape(*size))[None].to(model.device)
    prompt_embeds = model.encode_prompts([text])
    negative = model.encode_prompts([""]) if guidance_scale != 1.0 else None

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        return guided_velocity(model, latents, sigma, prompt_embeds, negative, guidance_scale)

    latents = sample_ode(velocity, noise, shifted_sigmas(num_denoising_steps, shift))
    return model.decode(latents)[0].cpu()
