"""The CogVideoX adapter, on a tiny random pipeline of diffusers' own classes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDPMScheduler
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from rlvid.condition import Condition
from rlvid.config import ModelConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import sample_ode
from rlvid.models import load_decoder, load_model
from rlvid.models.base import MediaModel
from rlvid.models.cogvideox import CogVideoXModel
from rlvid.models.tiny_families.cogvideox import build_image_model, build_pipeline
from rlvid.testing import check_model

CPU = torch.device("cpu")
CAPTION = "a red ball falls to the left"
CLIP = (9, 32, 32)
FOLDERS: dict[str, dict[str, Any]] = {
    "1.0-2b": {"has_rotary": False},
    "1.0-5b": {},
    "1.5": {"patch_size_t": 2},
}


@pytest.fixture(scope="module", params=FOLDERS)
def model(request: pytest.FixtureRequest) -> CogVideoXModel:
    return CogVideoXModel(build_pipeline(**FOLDERS[request.param]), device=CPU)


@pytest.fixture(scope="module")
def folder(model: CogVideoXModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    model.save(str(folder))
    return folder


def initial_noise(model: CogVideoXModel, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *model.latent_shape(*CLIP), generator=generator)


def sampled(
    model: CogVideoXModel, noise: Tensor, scale: float, media: Condition | None = None
) -> Tensor:
    positive, negative = model.encode_prompts([CAPTION]), model.encode_prompts([""])
    velocity = partial(
        guided_velocity,
        model,
        condition=positive if media is None else positive | media,
        negative=negative if media is None else negative | media,
        guidance_scale=scale,
    )
    return sample_ode(velocity, noise, model.sigmas(4, *CLIP))


def from_pipeline(
    model: CogVideoXModel, noise: Tensor, scale: float, output_type: str, **options: Any
) -> Tensor:
    """Latents are [B, F, C, H, W], as the pipeline has them."""
    frames: Tensor = model._pipeline(
        prompt=CAPTION,
        height=CLIP[1],
        width=CLIP[2],
        num_frames=CLIP[0],
        num_inference_steps=4,
        guidance_scale=scale,
        latents=noise.transpose(1, 2),
        max_sequence_length=model.max_sequence_length,
        output_type=output_type,
        **options,
    ).frames
    return frames


def test_adapter_keeps_the_protocol(model: CogVideoXModel) -> None:
    check_model(model, num_frames=CLIP[0], height=CLIP[1], width=CLIP[2])


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_pipeline_samples_what_the_adapter_samples(model: CogVideoXModel, scale: float) -> None:
    """DDIM of diffusers' own pipeline and scheduler against Euler in flow coordinates."""
    noise = initial_noise(model)
    latents = sampled(model, noise, scale)
    expected = partial(from_pipeline, model, noise, scale)
    torch.testing.assert_close(latents.transpose(1, 2), expected("latent"), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(model.decode(latents), expected("pt"), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("patch_size_t", [None, 2])
def test_image_pipeline_samples_what_its_adapter_samples(patch_size_t: int | None) -> None:
    """The picture's latents, their scale and place, and CogVideoX 1.5's further embedding."""
    model = build_image_model(patch_size_t=patch_size_t)
    make_posterior_sharp(model.vae)
    generator = torch.Generator().manual_seed(2)
    picture = torch.rand(1, 3, *CLIP[1:], generator=generator).mul(255.0).round().div(255.0)
    noise = initial_noise(model)
    media = model.encode_media({"first_frame": picture}, CLIP[0])
    latents = sampled(model, noise, 6.0, media)
    expected = from_pipeline(model, noise, 6.0, "latent", image=to_pil_image(picture[0]))
    torch.testing.assert_close(latents.transpose(1, 2), expected, atol=1e-5, rtol=0.0)


def make_posterior_sharp(vae: Any) -> None:
    """The pipeline draws the picture's latents; of this posterior every draw is the mode."""
    last = vae.encoder.conv_out.conv
    with torch.no_grad():
        last.weight[vae.config.latent_channels :] = 0.0
        last.bias[vae.config.latent_channels :] = -30.0


@pytest.mark.parametrize("patch_size_t", [None, 2])
def test_image_adapter_keeps_the_protocol(patch_size_t: int | None) -> None:
    model = build_image_model(patch_size_t=patch_size_t)
    check_model(model, num_frames=CLIP[0], height=CLIP[1], width=CLIP[2])
    assert isinstance(model, MediaModel)
    with pytest.raises(ValueError, match="the condition is of a text alone"):
        model.velocity(initial_noise(model), torch.tensor([0.5]), model.encode_prompts([CAPTION]))


def test_levels_are_those_of_the_pipelines_timesteps(model: CogVideoXModel) -> None:
    """From pure noise to clean, 50 steps of 20 timesteps each."""
    sigmas = model.sigmas(50, *CLIP)
    assert (len(sigmas), sigmas[0], sigmas[-1]) == (51, 1.0, 0.0)
    assert list(sigmas) == sorted(sigmas, reverse=True)
    timesteps = model._levels.timestep(torch.tensor(sigmas[:-1]))
    assert timesteps.tolist() == list(range(999, 0, -20))


def test_dpm_scheduler_of_a_folder_has_the_same_levels() -> None:
    """The 5B is published with it; its own steps are of second order, and stochastic."""
    pipeline = build_pipeline()
    expected = CogVideoXModel(pipeline, device=CPU).sigmas(10, *CLIP)
    pipeline.scheduler = CogVideoXDPMScheduler.from_config(pipeline.scheduler.config)
    assert CogVideoXModel(pipeline, device=CPU).sigmas(10, *CLIP) == expected


def test_saved_pipeline_loads_with_bit_identical_velocity(
    model: CogVideoXModel, folder: Path
) -> None:
    loaded = load_model(ModelConfig(use="cogvideox", path=str(folder)), device="cpu")
    latents, sigma = initial_noise(model, rows=2), torch.tensor([1.0, 0.3])
    with torch.no_grad():
        expected = model.velocity(latents, sigma, model.encode_prompts([CAPTION, ""]))
        got = loaded.velocity(latents, sigma, loaded.encode_prompts([CAPTION, ""]))
    assert torch.equal(got, expected)


def test_decoder_alone_gives_the_same_pixels(model: CogVideoXModel, folder: Path) -> None:
    decode = load_decoder(ModelConfig(use="cogvideox", path=str(folder), device="cpu"))
    latents = initial_noise(model, rows=2)
    assert torch.equal(decode(latents), model.decode(latents))


def test_latents_are_scaled_by_the_factor_of_the_vae(model: CogVideoXModel) -> None:
    """Unit noise must meet latents of unit scale; a round trip hides a wrong sense."""
    videos = torch.rand(1, CLIP[0], 3, *CLIP[1:], generator=torch.Generator().manual_seed(0))
    raw = model.vae.encode(videos.transpose(1, 2) * 2.0 - 1.0).latent_dist.mode()
    latents = model.encode(videos)
    torch.testing.assert_close(latents[:, :, -3:], raw * model.vae.config.scaling_factor)


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


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((10, 32, 32), "model.num_frames: expected a multiple of 4 plus 1, got 10"),
        ((13, 32, 32), "model.num_frames: expected a multiple of 8 plus 1, got 13. Take 9"),
        ((9, 24, 32), "model.height: expected a multiple of 16, got 24"),
    ],
)
def test_clip_size_that_does_not_divide_is_refused(
    model: CogVideoXModel, size: tuple[int, int, int], message: str
) -> None:
    """Of 13 frames the VAE would make 16 without a word."""
    with pytest.raises(ValueError, match=message):
        model.latent_shape(*size)


def test_scheduler_of_another_prediction_is_refused() -> None:
    """At zero terminal SNR a prediction of the noise cannot be turned into a velocity."""
    pipeline = build_pipeline()
    pipeline.scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(ValueError, match="prediction_type 'epsilon': expected 'v_prediction'"):
        CogVideoXModel(pipeline, device=CPU)


def test_folder_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(ValueError, match="names 'WanPipeline': expected 'CogVideoXPipeline'"):
        CogVideoXModel.load(tmp_path, device=CPU)
