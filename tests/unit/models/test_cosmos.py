"""The Cosmos-Predict 2.5 adapter, on a tiny random pipeline of diffusers' own classes."""

from __future__ import annotations

import pytest
import torch

from rlvid.models import pipeline_model
from rlvid.models.cosmos import CosmosModel
from rlvid.models.tiny_families.cosmos import build_model
from tests.unit.models.family_checks import FAMILIES, frames, noise
from tests.unit.models.family_pipelines import from_pipeline, sampled

FAMILY = FAMILIES["cosmos_first_frame"]


@pytest.fixture(scope="module")
def model() -> CosmosModel:
    return build_model()


def test_first_frame_is_told_as_the_pipeline_tells_it(model: CosmosModel) -> None:
    """Its own latents end at the picture's, where the pipeline leaves half a per cent of noise."""
    expected = from_pipeline(FAMILY, model, FAMILY.guidance_scale, "latent")
    latents = sampled(FAMILY, model, FAMILY.guidance_scale)
    torch.testing.assert_close(latents[:, :, 1:], expected[:, :, 1:], atol=1e-5, rtol=0.0)
    clean = model.encode(frames(FAMILY, model)["first_frame"][:, None])
    torch.testing.assert_close(latents[:, :, :1], clean, atol=1e-5, rtol=0.0)
    left = 1.0 - model.sigmas(FAMILY.num_steps, *FAMILY.clip)[0]
    started = noise(FAMILY, model)[:, :, :1]
    torch.testing.assert_close(
        expected[:, :, :1], (1.0 - left) * clean + left * started, atol=1e-5, rtol=0.0
    )


def test_levels_are_those_of_the_scheduler_before_and_after_sampling(model: CosmosModel) -> None:
    """Asking for them leaves the pipeline's own scheduler as it is."""
    sigmas = model.sigmas(35, *FAMILY.clip)
    assert (len(sigmas), sigmas[-1]) == (36, 0.0)
    assert sigmas[0] == pytest.approx(200.0 / 201.0)
    assert sigmas[-2] == pytest.approx(0.01 / 1.01)
    assert model._pipeline.scheduler.num_inference_steps is None


def test_kept_conditions_stay_within_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 texts of the real encoder would be 53 GB."""
    model = build_model()
    size = model.encode_prompts(["a"])["prompt_embeds"].nbytes
    monkeypatch.setattr(pipeline_model, "_CACHED_BYTES", 2 * size)
    model.encode_prompts(["b", "a", "c"])
    assert list(model._conditions) == ["a", "c"]


def test_pipeline_without_its_guardrail_does_not_sample(model: CosmosModel) -> None:
    """Only its parts are there for training."""
    with pytest.raises(RuntimeError, match="opened without its guardrail"):
        model._pipeline(prompt=FAMILY.caption, num_frames=9, height=32, width=32)
