"""The CogVideoX adapter, on a tiny random pipeline of diffusers' own classes."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXDPMScheduler

from rlvid.models.cogvideox import CogVideoXModel
from rlvid.models.tiny_families.cogvideox import build_pipeline
from tests.unit.models.family_checks import CPU, FOLDERS, build

CLIP = (9, 32, 32)
KINDS = ["cogvideox", "cogvideox_2b", "cogvideox15"]


@pytest.mark.parametrize("name", KINDS)
def test_levels_are_those_of_the_pipelines_timesteps(name: str) -> None:
    """From pure noise to clean, 50 steps of 20 timesteps each."""
    model = build(FOLDERS[name])
    sigmas = model.sigmas(50, *CLIP)
    assert (len(sigmas), sigmas[0], sigmas[-1]) == (51, 1.0, 0.0)
    assert list(sigmas) == sorted(sigmas, reverse=True)
    timesteps = model._levels.timestep(torch.tensor(sigmas[:-1]))
    assert timesteps.tolist() == list(range(999, 0, -20))


@pytest.mark.parametrize("name", KINDS)
def test_even_number_of_latent_frames_is_refused(name: str) -> None:
    """Of 13 frames the VAE would make 16 without a word."""
    message = "model.num_frames: expected a multiple of 8 plus 1, got 13. Take 9"
    with pytest.raises(ValueError, match=message):
        build(FOLDERS[name]).latent_shape(13, 32, 32)


def test_dpm_scheduler_of_a_folder_has_the_same_levels() -> None:
    """The 5B is published with it; its own steps are of second order, and stochastic."""
    pipeline = build_pipeline()
    expected = CogVideoXModel(pipeline, device=CPU).sigmas(10, *CLIP)
    pipeline.scheduler = CogVideoXDPMScheduler.from_config(pipeline.scheduler.config)
    assert CogVideoXModel(pipeline, device=CPU).sigmas(10, *CLIP) == expected


def test_frame_that_stands_for_none_is_a_copy_of_the_first() -> None:
    """CogVideoX 1.5 pairs latent frames and drops the first when it decodes."""
    model = CogVideoXModel(build_pipeline(patch_size_t=2), device=CPU)
    assert model.latent_shape(*CLIP) == (4, 4, 4, 4)
    videos = torch.rand(1, CLIP[0], 3, *CLIP[1:], generator=torch.Generator().manual_seed(0))
    latents = model.encode(videos)
    assert torch.equal(latents[:, :, 0], latents[:, :, 1])
    changed = latents.clone()
    changed[:, :, 0] = 0.0
    assert torch.equal(model.decode(changed), model.decode(latents))


def test_scheduler_of_another_prediction_is_refused() -> None:
    """At zero terminal SNR a prediction of the noise cannot be turned into a velocity."""
    pipeline = build_pipeline()
    pipeline.scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(ValueError, match="prediction_type 'epsilon': expected 'v_prediction'"):
        CogVideoXModel(pipeline, device=CPU)
