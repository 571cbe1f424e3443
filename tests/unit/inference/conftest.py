"""A tiny real model and clips sampled from it with a setting applied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.config.inference import InferenceConfig
from rlvid.flow.sampler import initial_noise, sample_ode
from rlvid.flow.sigmas import shifted_sigmas
from rlvid.inference.optimise import OptimisedModel, optimise
from rlvid.models.base import VideoModel
from rlvid.testing import tiny_model

Sample = Callable[..., Tensor]
PROMPT = "a red ball falls to the left while the camera stays still"


@pytest.fixture
def model() -> VideoModel:
    return tiny_model()


@pytest.fixture
def applied(model: VideoModel) -> Callable[..., OptimisedModel]:
    """Apply the settings given as keywords."""
    return lambda **settings: optimise(model, InferenceConfig.model_validate(settings))


@pytest.fixture
def sample(model: VideoModel) -> Sample:
    """Sample latents [B, C, F, H, W] of one clip or of several at once."""

    def sampled(
        optimised: OptimisedModel,
        *,
        prompt: str = PROMPT,
        seeds: tuple[int, ...] = (0,),
        num_steps: int = 8,
        guidance_scale: float = 3.0,
        **clip: Any,
    ) -> Tensor:
        noise = torch.stack([initial_noise(s, model.latent_shape(9, 16, 16)) for s in seeds])
        with torch.no_grad(), optimised.clip(**clip) as turn:
            condition, negative = turn.encode_prompts([prompt]), turn.encode_prompts([""])
            return sample_ode(
                lambda latents, sigma: turn.guided_velocity(
                    latents, sigma, condition, negative, guidance_scale
                ),
                noise,
                shifted_sigmas(num_steps, 3.0),
            )

    return sampled
