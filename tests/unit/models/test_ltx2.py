"""The LTX-2 adapter, on a tiny random pipeline of diffusers' own classes, audio half included."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import sample_ode
from rlvid.models.ltx2 import Ltx2Model
from rlvid.models.tiny_families.ltx2 import build_model
from rlvid.testing import check_model

CPU = torch.device("cpu")
CAPTION = "a red ball falls to the left"
CLIP = {"num_frames": 9, "height": 32, "width": 64}
STEPS = 4


@pytest.fixture(scope="module")
def model() -> Ltx2Model:
    return build_model()


@pytest.fixture(scope="module")
def folder(model: Ltx2Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    model.save(str(folder))
    return folder


def noise(model: Ltx2Model, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *model.latent_shape(**CLIP), generator=generator)


def batch(model: Ltx2Model) -> tuple[Tensor, Tensor, Any]:
    return noise(model, 2), torch.tensor([0.9, 0.3]), model.encode_prompts([CAPTION, ""])


def sampled(model: Ltx2Model, guidance_scale: float) -> Tensor:
    condition, empty = model.encode_prompts([CAPTION]), model.encode_prompts([""])

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        return guided_velocity(model, latents, sigma, condition, empty, guidance_scale)

    return sample_ode(velocity, noise(model), model.sigmas(STEPS, **CLIP))


@contextmanager
def streams_apart(transformer: Any, **others: Any) -> Iterator[None]:
    """Within the block the pipeline's transformer attends to no other stream than its own."""
    whole = transformer.forward

    def forward(**inputs: Any) -> Any:
        return whole(**{**inputs, **others, "isolate_modalities": True})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "forward", forward)
        yield


def from_pipeline(model: Ltx2Model, guidance_scale: float, output_type: str) -> Tensor:
    """Return the video that LTX2Pipeline makes of the same noise: latents of the VAE, or frames."""
    pipeline = model._pipeline
    pipeline.set_progress_bar_config(disable=True)
    result: Tensor = pipeline(
        CAPTION,
        **CLIP,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        stg_scale=0.0,
        modality_scale=1.0,
        guidance_rescale=0.0,
        audio_guidance_scale=None,
        audio_stg_scale=None,
        audio_modality_scale=None,
        audio_guidance_rescale=None,
        latents=pipeline._pack_latents(noise(model)),
        max_sequence_length=model.max_sequence_length,
        output_type=output_type,
    ).frames
    return result


def test_adapter_keeps_the_protocol(model: Ltx2Model) -> None:
    check_model(model, **CLIP)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_pipeline_samples_the_same_video_when_its_streams_are_apart(
    model: Ltx2Model, guidance_scale: float
) -> None:
    """Noise levels, packing, positions in seconds, connector, prompt mask, latent scale agree."""
    latents = sampled(model, guidance_scale)
    with streams_apart(model.transformer):
        expected = from_pipeline(model, guidance_scale, "latent")
        frames = from_pipeline(model, guidance_scale, "pt")
    assert expected.std() > 0.1
    torch.testing.assert_close(model._vae.unscale(latents), expected, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(model.decode(latents), frames, rtol=0.0, atol=1e-5)


def test_pipeline_with_sound_samples_another_video(model: Ltx2Model) -> None:
    """What the module says it is not: the joint model's video, which audio noise changes."""
    joint = from_pipeline(model, 1.0, "latent")
    assert not torch.allclose(joint, model._vae.unscale(sampled(model, 1.0)), atol=1e-3)


def test_audio_that_the_transformer_is_given_does_not_matter(model: Ltx2Model) -> None:
    """The zeros stand for no audio only because nothing of the video stream sees them."""
    silent = model.velocity(*batch(model)).detach()
    generator = torch.Generator().manual_seed(2)
    loud = torch.randn(2, 5, 4, generator=generator)
    with streams_apart(model.transformer, audio_hidden_states=loud, audio_num_frames=5):
        assert torch.equal(model.velocity(*batch(model)), silent)


def test_audio_half_gets_no_gradient(model: Ltx2Model) -> None:
    """What a LoRA must not be bound to, and full training leaves as it is."""
    model.velocity(*batch(model)).square().sum().backward()
    named = dict(model.transformer.named_parameters())
    trained = {name for name, parameter in named.items() if parameter.grad is not None}
    model.transformer.zero_grad()
    assert "transformer_blocks.0.attn1.to_q.weight" in trained
    assert "transformer_blocks.0.attn2.to_out.0.weight" in trained
    assert not [name for name in trained if "audio" in name]


def test_positions_are_told_in_seconds(model: Ltx2Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        before = model.velocity(*batch(model))
        monkeypatch.setattr(Ltx2Model, "FRAME_RATE", 8.0)
        assert not torch.allclose(model.velocity(*batch(model)), before, atol=1e-4)


def test_saved_pipeline_loads_with_the_same_bits(model: Ltx2Model, folder: Path) -> None:
    loaded = Ltx2Model.load(folder, device=CPU)
    with torch.no_grad():
        assert torch.equal(loaded.velocity(*batch(loaded)), model.velocity(*batch(model)))
    assert loaded.sigmas(STEPS, **CLIP) == model.sigmas(STEPS, **CLIP)


def test_frozen_parts_of_a_loaded_folder_are_frozen(folder: Path) -> None:
    pipeline = Ltx2Model.load(folder, device=CPU)._pipeline
    for name in ("text_encoder", "connectors", "audio_vae", "vocoder", "vae"):
        assert not any(p.requires_grad for p in getattr(pipeline, name).parameters()), name


def test_decoder_alone_gives_the_same_pixels(
    model: Ltx2Model, folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "pipeline"
    shutil.copytree(folder, copy)
    for part in ("transformer", "text_encoder", "audio_vae"):
        for weights in (copy / part).glob("*.safetensors"):
            weights.unlink()
    decode = Ltx2Model.load_decoder(copy, device=CPU)
    assert torch.equal(decode(noise(model)), model.decode(noise(model)))


def test_folder_without_its_audio_half_is_refused(folder: Path, tmp_path: Path) -> None:
    """The policy is saved as the whole pipeline; a part that is missing would be missing there."""
    copy = tmp_path / "pipeline"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "vocoder")
    with pytest.raises(ValueError, match="lacks vocoder"):
        Ltx2Model.load(copy, device=CPU)


def test_folder_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "LTXPipeline"}))
    with pytest.raises(ValueError, match="names 'LTXPipeline': expected 'LTX2Pipeline'"):
        Ltx2Model.load(tmp_path, device=CPU)
