"""The LTX-2 adapter, on a tiny random pipeline of diffusers' own classes, audio half included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.models.ltx2 import Ltx2Model
from rlvid.models.tiny_families.ltx2 import build_model
from tests.unit.models.family_checks import CPU, FAMILIES, batch, noise
from tests.unit.models.family_pipelines import sampled

FAMILY = FAMILIES["ltx2"]


@pytest.fixture(scope="module")
def model() -> Ltx2Model:
    return build_model()


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
        FAMILY.caption,
        **dict(zip(("num_frames", "height", "width"), FAMILY.clip, strict=True)),
        num_inference_steps=FAMILY.num_steps,
        guidance_scale=guidance_scale,
        stg_scale=0.0,
        modality_scale=1.0,
        guidance_rescale=0.0,
        audio_guidance_scale=None,
        audio_stg_scale=None,
        audio_modality_scale=None,
        audio_guidance_rescale=None,
        latents=pipeline._pack_latents(noise(FAMILY, model)),
        max_sequence_length=model.max_sequence_length,
        output_type=output_type,
    ).frames
    return result


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_pipeline_samples_the_same_video_when_its_streams_are_apart(
    model: Ltx2Model, guidance_scale: float
) -> None:
    """Noise levels, packing, positions in seconds, connector, prompt mask, latent scale agree."""
    latents = sampled(FAMILY, model, guidance_scale)
    with streams_apart(model.transformer):
        expected = from_pipeline(model, guidance_scale, "latent")
        frames = from_pipeline(model, guidance_scale, "pt")
    assert expected.std() > 0.1
    torch.testing.assert_close(model._vae.unscale(latents), expected, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(model.decode(latents), frames, rtol=0.0, atol=1e-5)


def test_pipeline_with_sound_samples_another_video(model: Ltx2Model) -> None:
    """What the module says it is not: the joint model's video, which audio noise changes."""
    joint = from_pipeline(model, 1.0, "latent")
    assert not torch.allclose(joint, model._vae.unscale(sampled(FAMILY, model, 1.0)), atol=1e-3)


def test_audio_that_the_transformer_is_given_does_not_matter(model: Ltx2Model) -> None:
    """The zeros stand for no audio only because nothing of the video stream sees them."""
    silent = model.velocity(*batch(FAMILY, model)).detach()
    generator = torch.Generator().manual_seed(2)
    loud = torch.randn(3, 5, 4, generator=generator)
    with streams_apart(model.transformer, audio_hidden_states=loud, audio_num_frames=5):
        assert torch.equal(model.velocity(*batch(FAMILY, model)), silent)


def test_audio_half_gets_no_gradient(model: Ltx2Model) -> None:
    """What a LoRA must not be bound to, and full training leaves as it is."""
    model.velocity(*batch(FAMILY, model)).square().sum().backward()
    named = dict(model.transformer.named_parameters())
    trained = {name for name, parameter in named.items() if parameter.grad is not None}
    model.transformer.zero_grad()
    assert "transformer_blocks.0.attn1.to_q.weight" in trained
    assert "transformer_blocks.0.attn2.to_out.0.weight" in trained
    assert not [name for name in trained if "audio" in name]


def test_frozen_parts_of_a_loaded_folder_are_frozen(model: Ltx2Model, tmp_path: Path) -> None:
    model.save(str(tmp_path))
    pipeline = Ltx2Model.load(tmp_path, device=CPU)._pipeline
    for name in ("text_encoder", "connectors", "audio_vae", "vocoder", "vae"):
        assert not any(p.requires_grad for p in getattr(pipeline, name).parameters()), name
