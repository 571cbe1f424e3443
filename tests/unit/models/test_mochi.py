"""The Mochi adapter, on a tiny random pipeline of diffusers' own classes."""

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
from rlvid.models.mochi import MochiModel, linear_quadratic_sigmas
from rlvid.models.tiny_families.mochi import build_model, build_pipeline
from rlvid.testing import check_model

CPU = torch.device("cpu")
CAPTION = "a red ball falls to the left"
CLIP = {"num_frames": 13, "height": 16, "width": 32}
STEPS = 5


@pytest.fixture(scope="module")
def model() -> MochiModel:
    return build_model()


@pytest.fixture(scope="module")
def folder(model: MochiModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    model.save(str(folder))
    return folder


def noise(model: MochiModel, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *model.latent_shape(**CLIP), generator=generator)


def batch(model: MochiModel) -> tuple[Tensor, Tensor, Any]:
    return noise(model, 2), torch.tensor([0.9, 0.3]), model.encode_prompts([CAPTION, ""])


def sampled(model: MochiModel, guidance_scale: float) -> Tensor:
    condition, empty = model.encode_prompts([CAPTION]), model.encode_prompts([""])

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        return guided_velocity(model, latents, sigma, condition, empty, guidance_scale)

    return sample_ode(velocity, noise(model), model.sigmas(STEPS, **CLIP))


def from_pipeline(model: MochiModel, guidance_scale: float, output_type: str) -> Tensor:
    """Return what MochiPipeline makes of the same noise: latents, or frames in [0, 1]."""
    pipeline = model._pipeline
    pipeline.set_progress_bar_config(disable=True)
    result: Tensor = pipeline(
        CAPTION,
        **CLIP,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        latents=noise(model),
        max_sequence_length=model.max_sequence_length,
        output_type=output_type,
    ).frames
    return result


def test_adapter_keeps_the_protocol(model: MochiModel) -> None:
    check_model(model, **CLIP)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_pipeline_samples_what_the_adapter_samples(
    model: MochiModel, guidance_scale: float
) -> None:
    """Reversed time, reversed velocity, noise levels, prompt mask and latent scale agree."""
    latents = sampled(model, guidance_scale)
    expected = from_pipeline(model, guidance_scale, "latent")
    assert expected.std() > 0.1
    torch.testing.assert_close(latents, expected, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(
        model.decode(latents), from_pipeline(model, guidance_scale, "pt"), rtol=0.0, atol=1e-5
    )


def test_folder_that_empties_the_empty_prompt_is_sampled_so_too(tmp_path: Path) -> None:
    """Mochi was trained with no token at all for it; a saved folder must go on saying so."""
    model = MochiModel(build_pipeline(force_zeros_for_empty_prompt=True), device=CPU)
    assert not model.encode_prompts([""])["prompt_mask"].any()
    assert model.encode_prompts([CAPTION])["prompt_mask"].any()
    expected = from_pipeline(model, 3.0, "latent")
    torch.testing.assert_close(sampled(model, 3.0), expected, rtol=0.0, atol=1e-5)
    model.save(str(tmp_path))
    loaded = MochiModel.load(tmp_path, device=CPU)
    assert not loaded.encode_prompts([""])["prompt_mask"].any()


def test_noise_levels_are_linear_and_then_quadratic(model: MochiModel) -> None:
    """Genmo's schedule in its own words: a linear half, then a parabola that goes on as it ends."""
    levels = model.sigmas(64, **CLIP)
    assert levels == pytest.approx([*linear_quadratic_sigmas(64), 0.0], abs=1e-6)
    steps = [before - after for before, after in zip(levels[:-1], levels[1:], strict=True)]
    assert steps[:32] == pytest.approx([0.025 / 32] * 32, abs=1e-6)
    growth = [after - before for before, after in zip(steps[32:-1], steps[33:], strict=True)]
    assert growth == pytest.approx([growth[0]] * len(growth), abs=1e-6)
    assert growth[0] > 0.0


def test_one_step_is_refused(model: MochiModel) -> None:
    with pytest.raises(ValueError, match="num_steps: Mochi's schedule takes at least 2, got 1"):
        model.sigmas(1, **CLIP)


def test_scheduler_that_runs_the_other_way_is_refused() -> None:
    """A shared FlowMatch scheduler copied into the folder would sample noise from noise."""
    pipeline = build_pipeline()
    pipeline.scheduler.register_to_config(invert_sigmas=False)
    with pytest.raises(ValueError, match="invert_sigmas is False: expected True"):
        MochiModel(pipeline, device=CPU).sigmas(STEPS, **CLIP)


@pytest.mark.parametrize("has_statistics", [True, False])
def test_latents_are_normalised_by_the_statistics_of_the_vae(has_statistics: bool) -> None:
    pipeline = build_pipeline()
    pipeline.vae.register_to_config(scaling_factor=2.0)
    mean, std = (torch.tensor(pipeline.vae.config[f"latents_{name}"]) for name in ("mean", "std"))
    if not has_statistics:
        pipeline.vae.register_to_config(latents_mean=None, latents_std=None)
        mean, std = torch.zeros(12), torch.ones(12)
    model = MochiModel(pipeline, device=CPU)
    videos = torch.rand(1, 13, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model.vae.encode(videos.permute(0, 2, 1, 3, 4) * 2.0 - 1.0).latent_dist.mode()
    shape = (1, -1, 1, 1, 1)
    expected = (plain - mean.view(shape)) / std.view(shape) * 2.0
    torch.testing.assert_close(model.encode(videos), expected)


def test_saved_pipeline_loads_with_the_same_bits(model: MochiModel, folder: Path) -> None:
    loaded = MochiModel.load(folder, device=CPU)
    with torch.no_grad():
        assert torch.equal(loaded.velocity(*batch(loaded)), model.velocity(*batch(model)))
    assert loaded.sigmas(STEPS, **CLIP) == model.sigmas(STEPS, **CLIP)


def test_decoder_alone_gives_the_same_pixels(
    model: MochiModel, folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "pipeline"
    shutil.copytree(folder, copy)
    for part in ("transformer", "text_encoder"):
        for weights in (copy / part).glob("*.safetensors"):
            weights.unlink()
    decode = MochiModel.load_decoder(copy, device=CPU)
    assert torch.equal(decode(noise(model)), model.decode(noise(model)))


def test_attention_backend_is_refused(folder: Path) -> None:
    """diffusers' Mochi calls torch's attention whatever it is told, and says nothing."""
    with pytest.raises(ValueError, match="takes no kernel but torch's: expected null, got 'flex'"):
        MochiModel.load(folder, device=CPU, attention_backend="flex")


def test_folder_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(ValueError, match="names 'WanPipeline': expected 'MochiPipeline'"):
        MochiModel.load(tmp_path, device=CPU)


def test_clip_that_does_not_divide_is_refused(model: MochiModel) -> None:
    with pytest.raises(ValueError, match="model.width: expected a multiple of 16, got 24"):
        model.latent_shape(13, 16, 24)
    with pytest.raises(ValueError, match="model.num_frames: expected a multiple of 6 plus 1"):
        model.latent_shape(12, 16, 32)
