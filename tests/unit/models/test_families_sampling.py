"""Of every family, our sampler with the adapter's velocity makes what its pipeline makes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tests.unit.models.family_checks import FOLDERS, build
from tests.unit.models.family_pipelines import from_pipeline, in_pipeline, sampled

APART = {"cosmos_first_frame", "ltx2", "ltx2_interleaved"}
"""Compared in files of their own: their pipelines also do what the adapters do not."""


@cache
def opened(name: str) -> Any:
    return build(FOLDERS[name])


@pytest.mark.parametrize("is_guided", [False, True])
@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in APART])
def test_pipeline_samples_what_the_adapter_samples(name: str, is_guided: bool) -> None:
    """Prompts, masks, frames, noise levels, timesteps, guidance, latent scale and pixels agree."""
    family, model = FOLDERS[name], opened(name)
    scale = family.guidance_scale if is_guided else 1.0
    latents = sampled(family, model, scale)
    expected = from_pipeline(family, model, scale, "latent")
    assert expected.std() > 0.1
    torch.testing.assert_close(in_pipeline(family, model, latents), expected, rtol=0.0, atol=1e-5)
    # Cosmos' random VAE makes 20 times more of a rounding: it is given the very same latents.
    decoded = model.decode(expected if family.use == "cosmos" else latents)
    pixels = from_pipeline(family, model, scale, "pt")
    if family.use == "sd3":
        pixels = pixels.unsqueeze(1)
    torch.testing.assert_close(decoded, pixels, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shift"), [("hunyuan_video", 7), ("hunyuan_video15", 5), ("hunyuan_video15_i2v", 5)]
)
def test_noise_levels_are_shifted_by_the_folder(name: str, shift: int) -> None:
    """shift u / (1 + (shift - 1) u) of evenly spaced u, with the shift of its scheduler."""
    expected = [shift * u / (1.0 + (shift - 1.0) * u) for u in (1.0, 0.75, 0.5, 0.25, 0.0)]
    assert opened(name).sigmas(4, *FOLDERS[name].clip) == pytest.approx(expected)
