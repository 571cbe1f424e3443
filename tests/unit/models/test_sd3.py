"""The Stable Diffusion 3 adapter, on a tiny random pipeline of diffusers' own classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import sample_ode
from rlvid.models.sd3 import StableDiffusion3Model
from rlvid.models.tiny_families.sd3 import build_model, build_pipeline
from rlvid.testing import check_model

CPU = torch.device("cpu")
CAPTION = "a red ball falls to the left"
CLIP = {"num_frames": 1, "height": 16, "width": 32}
STEPS = 4


@pytest.fixture(scope="module")
def model() -> StableDiffusion3Model:
    return build_model()


@pytest.fixture(scope="module")
def folder(model: StableDiffusion3Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    model.save(str(folder))
    return folder


def noise(model: StableDiffusion3Model, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *model.latent_shape(**CLIP), generator=generator)


def batch(model: StableDiffusion3Model) -> tuple[Tensor, Tensor, Any]:
    return noise(model, 2), torch.tensor([0.9, 0.3]), model.encode_prompts([CAPTION, ""])


def sampled(model: StableDiffusion3Model, guidance_scale: float) -> Tensor:
    condition, empty = model.encode_prompts([CAPTION]), model.encode_prompts([""])

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        return guided_velocity(model, latents, sigma, condition, empty, guidance_scale)

    return sample_ode(velocity, noise(model), model.sigmas(STEPS, **CLIP))


def from_pipeline(model: StableDiffusion3Model, guidance_scale: float, output_type: str) -> Tensor:
    """Return what StableDiffusion3Pipeline makes of the same noise, as a clip of one frame."""
    pipeline = model._pipeline
    pipeline.set_progress_bar_config(disable=True)
    result: Tensor = pipeline(
        CAPTION,
        height=CLIP["height"],
        width=CLIP["width"],
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        latents=noise(model).squeeze(2),
        max_sequence_length=model.max_sequence_length,
        output_type=output_type,
    ).images
    return result


def test_adapter_keeps_the_protocol(model: StableDiffusion3Model) -> None:
    check_model(model, **CLIP)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_pipeline_samples_what_the_adapter_samples(
    model: StableDiffusion3Model, guidance_scale: float
) -> None:
    """Three encoders, noise levels, latent scale and shift agree."""
    latents = sampled(model, guidance_scale)
    expected = from_pipeline(model, guidance_scale, "latent")
    assert expected.std() > 0.1
    torch.testing.assert_close(latents.squeeze(2), expected, rtol=0.0, atol=1e-5)
    image = from_pipeline(model, guidance_scale, "pt")
    torch.testing.assert_close(model.decode(latents).squeeze(1), image, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 3, 28])
@pytest.mark.parametrize("is_dynamic", [False, True])
def test_noise_levels_are_those_of_the_pipeline(num_steps: int, is_dynamic: bool) -> None:
    """Its scheduler shifts the last level twice; a folder may shift by the number of tokens."""
    pipeline = build_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=is_dynamic)
    model = StableDiffusion3Model(pipeline, device=CPU)
    ours = model.sigmas(num_steps, **CLIP)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        CAPTION,
        height=CLIP["height"],
        width=CLIP["width"],
        num_inference_steps=num_steps,
        guidance_scale=1.0,
        output_type="latent",
    )
    assert ours == pytest.approx(pipeline.scheduler.sigmas.tolist(), abs=1e-6)


def test_all_encoders_read_the_prompt(model: StableDiffusion3Model) -> None:
    """CLIP's tokens come first, its two encoders side by side, T5's behind them."""
    one, other = CAPTION, CAPTION.replace("red", "blue")
    condition = model.encode_prompts([one, other])
    change = (condition["prompt_embeds"][0] - condition["prompt_embeds"][1]).abs()
    parts = (change[:77, :8], change[:77, 8:16], change[77:])
    assert all(part.max() > 1e-3 for part in parts)
    assert torch.equal(change[:77, 16:], torch.zeros(77, 8))
    pooled = condition["pooled_embeds"]
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-3)


def test_saved_pipeline_loads_with_the_same_bits(
    model: StableDiffusion3Model, folder: Path
) -> None:
    loaded = StableDiffusion3Model.load(folder, device=CPU)
    with torch.no_grad():
        assert torch.equal(loaded.velocity(*batch(loaded)), model.velocity(*batch(model)))
    assert loaded.sigmas(STEPS, **CLIP) == model.sigmas(STEPS, **CLIP)


def test_bfloat16_transformer_is_float32_outside(
    model: StableDiffusion3Model, folder: Path
) -> None:
    """Log-probabilities are of float32 latents; a part in another dtype would fail to multiply."""
    loaded = StableDiffusion3Model.load(folder, device=CPU, dtype=torch.bfloat16)
    with torch.no_grad():
        velocity, expected = loaded.velocity(*batch(loaded)), model.velocity(*batch(model))
    assert velocity.dtype == torch.float32
    torch.testing.assert_close(velocity, expected, rtol=0.0, atol=0.1)


def test_decoder_alone_gives_the_same_pixels(
    model: StableDiffusion3Model, folder: Path, tmp_path: Path
) -> None:
    """It reads nothing else: a reward process has no memory for a transformer."""
    copy = tmp_path / "pipeline"
    shutil.copytree(folder, copy)
    for part in ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3"):
        for weights in (copy / part).glob("*.safetensors"):
            weights.unlink()
    decode = StableDiffusion3Model.load_decoder(copy, device=CPU)
    assert torch.equal(decode(noise(model)), model.decode(noise(model)))


def test_latents_have_the_scale_of_the_transformer(model: StableDiffusion3Model) -> None:
    """The pipeline divides by the factor and adds the shift; a round trip hides a wrong sense."""
    videos = torch.rand(1, 1, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    config = model.vae.config
    with torch.no_grad():
        plain = model.vae.encode(videos[:, 0] * 2.0 - 1.0).latent_dist.mode()
    expected = (plain - config.shift_factor) * config.scaling_factor
    torch.testing.assert_close(model.encode(videos).squeeze(2), expected)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((5, 16, 16), "model.num_frames: expected 1 of an image model, got 5"),
        ((1, 20, 16), "model.height: expected a multiple of 8, got 20"),
        ((1, 16, 4), "model.width: expected a multiple of 8, got 4"),
        ((1, 16, 72), "model.width: expected at most 64, for which the transformer has positions"),
    ],
)
def test_clip_size_that_does_not_divide_is_refused(
    model: StableDiffusion3Model, size: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.latent_shape(*size)


def test_folder_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(
        ValueError, match="names 'WanPipeline': expected 'StableDiffusion3Pipeline'"
    ):
        StableDiffusion3Model.load(tmp_path, device=CPU)


def test_incomplete_folder_names_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pipeline"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "tokenizer_3")
    with pytest.raises(ValueError, match="lacks tokenizer_3"):
        StableDiffusion3Model.load(copy, device=CPU)
