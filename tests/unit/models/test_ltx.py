"""The LTX-Video adapter, on a tiny random pipeline of diffusers' own classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import sample_ode
from rlvid.models.ltx import LtxModel
from rlvid.models.tiny_families.ltx import build_model, build_pipeline
from rlvid.testing import check_model

CPU = torch.device("cpu")
CAPTION = "a red ball falls to the left"
CLIP = {"num_frames": 9, "height": 32, "width": 64}
STEPS = 4


@pytest.fixture(scope="module")
def model() -> LtxModel:
    return build_model()


@pytest.fixture(scope="module")
def folder(model: LtxModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    model.save(str(folder))
    return folder


def noise(model: LtxModel, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *model.latent_shape(**CLIP), generator=generator)


def batch(model: LtxModel) -> tuple[Tensor, Tensor, Any]:
    return noise(model, 2), torch.tensor([0.9, 0.3]), model.encode_prompts([CAPTION, ""])


def sampled(model: LtxModel, guidance_scale: float) -> Tensor:
    condition, empty = model.encode_prompts([CAPTION]), model.encode_prompts([""])

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        return guided_velocity(model, latents, sigma, condition, empty, guidance_scale)

    return sample_ode(velocity, noise(model), model.sigmas(STEPS, **CLIP))


def from_pipeline(model: LtxModel, guidance_scale: float, output_type: str) -> Tensor:
    """Return what LTXPipeline makes of the same noise: tokens, or frames in [0, 1]."""
    pipeline = model._pipeline
    pipeline.set_progress_bar_config(disable=True)
    result: Tensor = pipeline(
        CAPTION,
        **CLIP,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        latents=pipeline._pack_latents(noise(model)),
        max_sequence_length=model.max_sequence_length,
        output_type=output_type,
    ).frames
    return result


def test_adapter_keeps_the_protocol(model: LtxModel) -> None:
    check_model(model, **CLIP)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_pipeline_samples_what_the_adapter_samples(model: LtxModel, guidance_scale: float) -> None:
    """Noise levels, packing, positions in seconds, prompt mask and latent scale agree."""
    latents = sampled(model, guidance_scale)
    packed = model._pipeline._pack_latents(latents)
    expected = from_pipeline(model, guidance_scale, "latent")
    assert expected.std() > 0.1
    torch.testing.assert_close(packed, expected, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(
        model.decode(latents), from_pipeline(model, guidance_scale, "pt"), rtol=0.0, atol=1e-5
    )


def test_decoder_that_is_told_a_noise_level_decodes_as_the_pipeline_does() -> None:
    """LTX-Video 0.9.1 and later; with no timestep its decoder fails, with another it blurs."""
    model = LtxModel(build_pipeline(is_timestep_conditioned=True), device=CPU)
    frames = model.decode(sampled(model, 1.0))
    torch.manual_seed(0)  # of the noise that the decoder injects
    expected = from_pipeline(model, 1.0, "pt")
    torch.testing.assert_close(frames, expected, rtol=0.0, atol=1e-5)


def test_decoder_that_injects_noise_gives_the_same_frames_again() -> None:
    """A reward must not depend on what was drawn before, and decoding must draw nothing."""
    model = LtxModel(build_pipeline(is_timestep_conditioned=True), device=CPU)
    clips = noise(model, 2)
    together = model.decode(clips)
    before = torch.get_rng_state()
    torch.testing.assert_close(model.decode(clips[1:]), together[1:], rtol=0.0, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_levels_depend_on_the_size_of_the_clip(model: LtxModel) -> None:
    """More tokens, more shift; the last level above 0 is the 0.1 of LTX-Video's scheduler."""
    small, large = model.sigmas(STEPS, 9, 32, 32), model.sigmas(STEPS, 129, 480, 704)
    assert small[0] == large[0] == 1.0
    assert small[-1] == large[-1] == 0.0
    assert large[1] > small[1]
    assert small[-2] == pytest.approx(0.1)
    assert large[-2] == pytest.approx(0.1)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_shift_beyond_float32_is_refused(model: LtxModel) -> None:
    """The shift grows with the tokens for ever; at some size the noise levels are nan."""
    with pytest.raises(ValueError, match="Sample smaller clips"):
        model.sigmas(STEPS, 257, 704, 1216)


def test_positions_are_told_in_seconds(model: LtxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same latents at another frame rate are another clip."""
    with torch.no_grad():
        before = model.velocity(*batch(model))
        monkeypatch.setattr(LtxModel, "FRAME_RATE", 8.0)
        assert not torch.allclose(model.velocity(*batch(model)), before, atol=1e-4)


def test_latents_are_normalised_by_the_statistics_of_the_vae(model: LtxModel) -> None:
    """LTX-Video keeps them among the weights, not in the configuration."""
    vae = model.vae
    videos = torch.rand(1, 9, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = vae.encode(videos.permute(0, 2, 1, 3, 4) * 2.0 - 1.0).latent_dist.mode()
    mean, std = vae.latents_mean.view(1, -1, 1, 1, 1), vae.latents_std.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(model.encode(videos), (plain - mean) / std)


def test_saved_pipeline_loads_with_the_same_bits(model: LtxModel, folder: Path) -> None:
    loaded = LtxModel.load(folder, device=CPU)
    with torch.no_grad():
        assert torch.equal(loaded.velocity(*batch(loaded)), model.velocity(*batch(model)))
    assert loaded.sigmas(STEPS, **CLIP) == model.sigmas(STEPS, **CLIP)


def test_decoder_alone_gives_the_same_pixels(model: LtxModel, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pipeline"
    shutil.copytree(folder, copy)
    for part in ("transformer", "text_encoder"):
        for weights in (copy / part).glob("*.safetensors"):
            weights.unlink()
    decode = LtxModel.load_decoder(copy, device=CPU)
    assert torch.equal(decode(noise(model)), model.decode(noise(model)))


def test_folder_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(ValueError, match="names 'WanPipeline': expected 'LTXPipeline'"):
        LtxModel.load(tmp_path, device=CPU)


def test_clip_that_does_not_divide_is_refused(model: LtxModel) -> None:
    with pytest.raises(ValueError, match="model.height: expected a multiple of 32, got 48"):
        model.latent_shape(9, 48, 64)


def test_patched_transformer_is_refused() -> None:
    """LTXPipeline itself would give it positions of unpatched latents."""
    pipeline = build_pipeline()
    pipeline.transformer.register_to_config(patch_size=2)
    with pytest.raises(ValueError, match="patch_size 2: expected 1 and 1"):
        LtxModel(pipeline, device=CPU)
