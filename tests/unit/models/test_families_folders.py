"""Of every family: what is written to a folder and read from it, and which folders are refused."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from rlvid.models import MODELS, load_decoder, load_model
from rlvid.models.base import MediaModel
from rlvid.models.pipeline_model import PipelineModel
from rlvid.plugins import resolve
from tests.unit.models.family_checks import (
    BFLOAT16_DEVIATION,
    CPU,
    FOLDERS,
    Family,
    batch,
    build,
    config_of,
    deviation,
    noise,
)


@pytest.fixture(params=FOLDERS, scope="module")
def family(request: pytest.FixtureRequest) -> Family:
    return FOLDERS[request.param]


@cache
def opened(family: Family) -> Any:
    return build(family)


@pytest.fixture(scope="module")
def model(family: Family) -> Any:
    return opened(family)


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    model.save(str(folder))
    return folder


def test_saved_pipeline_loads_with_the_same_bits(family: Family, model: Any, folder: Path) -> None:
    loaded: Any = load_model(config_of(family, folder))
    assert type(loaded) is type(model)
    if isinstance(model, MediaModel):
        assert (loaded.media, loaded.required_media) == (model.media, model.required_media)
    before, after = model.transformer.state_dict(), loaded.transformer.state_dict()
    assert list(before) == list(after)
    # diffusers draws CogVideoX's learned positions in float64, and adds them in float32.
    assert all(torch.equal(before[name].float(), after[name]) for name in before)
    assert loaded.sigmas(family.num_steps, *family.clip) == model.sigmas(
        family.num_steps, *family.clip
    )
    (latents, sigma, own), (_, _, read) = batch(family, model), batch(family, loaded)
    torch.testing.assert_close(dict(read.tensors), dict(own.tensors), rtol=0.0, atol=0.0)
    with torch.no_grad():
        velocities = [one.velocity(latents, sigma, own) for one in (loaded, model)]
    torch.testing.assert_close(*velocities, rtol=0.0, atol=family.loaded_atol)


def test_bfloat16_transformer_is_float32_outside(
    family: Family, model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities are of float32 latents; a part in another dtype would fail to multiply."""
    for attribute, value in family.exact_in_bfloat16.items():
        monkeypatch.setattr(type(model), attribute, value)
    loaded: Any = load_model(config_of(family, folder, dtype="bfloat16"))
    latents, sigma, condition = batch(family, model)
    with torch.no_grad():
        expected = model.velocity(latents, sigma, condition)
        alone = loaded.velocity(latents, sigma, condition)
        encoded = loaded.velocity(*batch(family, loaded))
        other = build(family, seed=1).velocity(latents, sigma, condition)
    assert alone.dtype == encoded.dtype == torch.float32
    assert deviation(alone, expected) < BFLOAT16_DEVIATION
    assert deviation(encoded, expected) < family.encoder_gain * BFLOAT16_DEVIATION
    assert deviation(other, expected) > 3.0 * family.encoder_gain * BFLOAT16_DEVIATION


def test_decoder_alone_gives_the_same_pixels(
    family: Family, model: Any, folder: Path, tmp_path: Path
) -> None:
    """It reads nothing else: a reward process has no memory for a transformer."""
    copy = tmp_path / "pipeline"
    shutil.copytree(folder, copy)
    others = [one for one in copy.rglob("*.safetensors") if one.parent.name != "vae"]
    assert {one.parent.name for one in others} >= {"transformer", "text_encoder"}
    for weights in others:
        weights.unlink()
    latents = noise(family, model, rows=2)
    assert torch.equal(load_decoder(config_of(family, copy))(latents), model.decode(latents))


def test_incomplete_folder_names_what_it_lacks(model: Any, folder: Path, tmp_path: Path) -> None:
    """The policy is saved as the whole pipeline; a part that is missing would be missing there."""
    copy = tmp_path / "pipeline"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    for part in type(model).PARTS:
        (copy / part).rename(tmp_path / part)
        with pytest.raises(ValueError, match=rf"lacks {part}: expected diffusers' pipeline"):
            type(model).load(copy, device=CPU)
        (tmp_path / part).rename(copy / part)


@pytest.mark.parametrize("use", MODELS)
def test_folder_of_another_pipeline_is_refused(use: str, tmp_path: Path) -> None:
    """Of each other family, whatever else its index says."""
    family = adapter(use)
    for name in sorted({adapter(one).PIPELINE for one in MODELS} - {family.PIPELINE}):
        index = {"_class_name": name, "boundary_ratio": 0.875, "expand_timesteps": True}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=f"names '{name}': expected '{family.PIPELINE}'"):
            family.load(tmp_path, device=CPU)


def adapter(use: str) -> type[PipelineModel]:
    return cast("type[PipelineModel]", resolve(use, MODELS, where="model.use"))


def test_clip_that_does_not_divide_is_refused(family: Family, model: Any) -> None:
    """The VAE would make another number of frames, or cut a part off, without a word."""
    num_frames, height, width = family.clip
    temporal, spatial = family.units
    high = 2 * spatial + spatial // 2
    unit = f"expected a multiple of {spatial}"
    refused = {
        (num_frames, high, width): f"model.height: {unit}, got {high}",
        (num_frames, height, spatial // 2): f"model.width: {unit}, got {spatial // 2}",
    }
    if temporal > 1:
        refused[num_frames - 1, height, width] = (
            f"model.num_frames: expected a multiple of {temporal} plus 1, got {num_frames - 1}"
        )
    for size, message in refused.items():
        with pytest.raises(ValueError, match=message):
            model.latent_shape(*size)


def test_latents_have_the_scale_of_the_transformer(family: Family, model: Any) -> None:
    """Unit noise must meet latents of unit scale; a round trip hides a wrong sense."""
    num_frames, height, width = family.clip
    generator = torch.Generator().manual_seed(0)
    videos = torch.rand(1, num_frames, 3, height, width, generator=generator)
    pixels = videos.permute(0, 2, 1, 3, 4) * 2.0 - 1.0
    with torch.no_grad():
        if family.use == "sd3":
            plain = model.vae.encode(pixels.squeeze(2)).latent_dist.mode().unsqueeze(2)
        else:
            plain = model.vae.encode(pixels).latent_dist.mode()
    mean, std = statistics(model.vae)
    # CogVideoX 1.5 has a further latent frame in front.
    found = model.encode(videos)[:, :, -plain.shape[2] :]
    torch.testing.assert_close(found, (plain - mean) / std)


def statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents, as the pipelines of each VAE read them."""
    config = vae.config
    if type(vae).__name__ in ("AutoencoderKLWan", "AutoencoderKLMochi"):
        mean, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
    elif type(vae).__name__ in ("AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video"):
        mean, std = vae.latents_mean, vae.latents_std  # among the weights
    else:
        mean, std = torch.zeros(1), torch.ones(1) / config.scaling_factor
    if type(vae).__name__ == "AutoencoderKL":
        mean = mean + config.shift_factor
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
