"""The HunyuanVideo-1.5 adapter, on a tiny random pipeline of diffusers' own classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ClassifierFreeGuidance
from torch import Tensor

from rlvid.condition import Condition
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import sample_ode
from rlvid.models.hunyuan_video15 import HunyuanVideo15Model
from rlvid.models.tiny_families.hunyuan_video15 import build_model
from rlvid.testing import check_model

CPU = torch.device("cpu")
CAPTION = 'a red box with "to go"'
CLIP = {"num_frames": 9, "height": 16, "width": 32}
STEPS = 4


@pytest.fixture(scope="module")
def model() -> HunyuanVideo15Model:
    return build_model()


@pytest.fixture(scope="module")
def folder(model: HunyuanVideo15Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    model.save(str(folder))
    return folder


def noise(model: HunyuanVideo15Model, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *model.latent_shape(**CLIP), generator=generator)


def batch(model: HunyuanVideo15Model) -> tuple[Tensor, Tensor, Any]:
    return noise(model, 2), torch.tensor([0.9, 0.3]), model.encode_prompts([CAPTION, ""])


def sampled(model: HunyuanVideo15Model, guidance_scale: float) -> Tensor:
    condition, empty = model.encode_prompts([CAPTION]), model.encode_prompts([""])

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        return guided_velocity(model, latents, sigma, condition, empty, guidance_scale)

    return sample_ode(velocity, noise(model), model.sigmas(STEPS, **CLIP))


def from_pipeline(model: HunyuanVideo15Model, guidance_scale: float, output_type: str) -> Tensor:
    """Return what HunyuanVideo15Pipeline makes of the same noise: latents, or frames in [0, 1]."""
    pipeline = model._pipeline
    pipeline.set_progress_bar_config(disable=True)
    pipeline.guider = ClassifierFreeGuidance(guidance_scale=guidance_scale)
    result: Tensor = pipeline(
        CAPTION,
        **CLIP,
        num_inference_steps=STEPS,
        latents=noise(model),
        output_type=output_type,
    ).frames
    return result


def test_adapter_keeps_the_protocol(model: HunyuanVideo15Model) -> None:
    check_model(model, **CLIP)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_pipeline_samples_what_the_adapter_samples(
    model: HunyuanVideo15Model, guidance_scale: float
) -> None:
    """Template, glyphs, masks, noise levels, guidance and latent scale agree."""
    latents = sampled(model, guidance_scale)
    expected = from_pipeline(model, guidance_scale, "latent")
    assert expected.std() > 0.1
    torch.testing.assert_close(latents, expected, rtol=0.0, atol=1e-5)
    frames = from_pipeline(model, guidance_scale, "pt")
    torch.testing.assert_close(model.decode(latents), frames, rtol=0.0, atol=1e-5)


def test_system_message_is_cut_off(model: HunyuanVideo15Model) -> None:
    """Left are the prompt, or a space for none, and five tokens that announce the answer."""
    mask = model.encode_prompts(["a red ball", ""])["prompt_mask"]
    assert mask.sum(dim=1).tolist() == [3 + 5, 1 + 5]
    assert mask[:, 0].tolist() == [1.0, 1.0]


def test_letters_in_quotation_marks_reach_the_transformer(model: HunyuanVideo15Model) -> None:
    """A prompt without them has no glyphs; those of another word are others."""
    condition = model.encode_prompts([CAPTION, CAPTION.replace("go", "do"), "a red box"])
    glyphs, mask = condition["glyph_embeds"], condition["glyph_mask"]
    assert mask.sum(dim=1).tolist() == [len('Text "to go". ') + 1] * 2 + [0]
    assert not torch.allclose(glyphs[0], glyphs[1], atol=1e-3)
    assert torch.equal(glyphs[2], torch.zeros_like(glyphs[2]))
    without = Condition({**condition.tensors, "glyph_mask": torch.zeros_like(mask)})
    latents, sigma = noise(model, 3), torch.full((3,), 0.5)
    with torch.no_grad():
        change = model.velocity(latents, sigma, condition) - model.velocity(latents, sigma, without)
    assert change[0].abs().max() > 1e-4
    assert torch.equal(change[2], torch.zeros_like(change[2]))


def test_noise_levels_are_shifted_by_the_folder(model: HunyuanVideo15Model) -> None:
    """shift u / (1 + (shift - 1) u) of evenly spaced u, with the 5 of 480p."""
    uniform = (1.0, 0.75, 0.5, 0.25, 0.0)
    expected = [5.0 * u / (1.0 + 4.0 * u) for u in uniform]
    assert model.sigmas(4, **CLIP) == pytest.approx(expected)


def test_saved_pipeline_loads_with_the_same_bits(model: HunyuanVideo15Model, folder: Path) -> None:
    loaded = HunyuanVideo15Model.load(folder, device=CPU)
    with torch.no_grad():
        assert torch.equal(loaded.velocity(*batch(loaded)), model.velocity(*batch(model)))
    assert loaded.sigmas(STEPS, **CLIP) == model.sigmas(STEPS, **CLIP)


def test_bfloat16_transformer_is_float32_outside(model: HunyuanVideo15Model, folder: Path) -> None:
    """Log-probabilities are of float32 latents; a part in another dtype would fail to multiply."""
    loaded = HunyuanVideo15Model.load(folder, device=CPU, dtype=torch.bfloat16)
    with torch.no_grad():
        velocity, expected = loaded.velocity(*batch(loaded)), model.velocity(*batch(model))
    assert velocity.dtype == torch.float32
    torch.testing.assert_close(velocity, expected, rtol=0.0, atol=0.1)


def test_decoder_alone_gives_the_same_pixels(
    model: HunyuanVideo15Model, folder: Path, tmp_path: Path
) -> None:
    """It reads nothing else: a reward process has no memory for a transformer."""
    copy = tmp_path / "pipeline"
    shutil.copytree(folder, copy)
    for part in ("transformer", "text_encoder", "text_encoder_2"):
        for weights in (copy / part).glob("*.safetensors"):
            weights.unlink()
    decode = HunyuanVideo15Model.load_decoder(copy, device=CPU)
    assert torch.equal(decode(noise(model)), model.decode(noise(model)))


def test_latents_have_the_scale_of_the_transformer(model: HunyuanVideo15Model) -> None:
    """The pipeline divides by the factor before it decodes; a round trip hides a wrong sense."""
    videos = torch.rand(1, 9, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model.vae.encode(videos.permute(0, 2, 1, 3, 4) * 2.0 - 1.0).latent_dist.mode()
    torch.testing.assert_close(model.encode(videos), plain * model.vae.config.scaling_factor)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((8, 16, 16), "model.num_frames: expected a multiple of 4 plus 1, got 8"),
        ((9, 20, 16), "model.height: expected a multiple of 8, got 20"),
        ((9, 16, 4), "model.width: expected a multiple of 8, got 4"),
    ],
)
def test_clip_size_that_does_not_divide_is_refused(
    model: HunyuanVideo15Model, size: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.latent_shape(*size)


def test_folder_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(ValueError, match="names 'WanPipeline': expected 'HunyuanVideo15Pipeline'"):
        HunyuanVideo15Model.load(tmp_path, device=CPU)


def test_incomplete_folder_names_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pipeline"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "guider")
    with pytest.raises(ValueError, match="lacks guider"):
        HunyuanVideo15Model.load(copy, device=CPU)
