"""The LTX-Video adapter, on a tiny random pipeline of diffusers' own classes."""

from __future__ import annotations

import pytest
import torch

from rlvid.models.ltx import LtxModel
from rlvid.models.tiny_families.ltx import build_model, build_pipeline
from tests.unit.models.family_checks import CPU, FAMILIES, batch, build, noise
from tests.unit.models.family_pipelines import from_pipeline, sampled

FAMILY = FAMILIES["ltx"]
STEPS = 4


@pytest.fixture(scope="module")
def model() -> LtxModel:
    return build_model()


def test_decoder_that_is_told_a_noise_level_decodes_as_the_pipeline_does() -> None:
    """LTX-Video 0.9.1 and later; with no timestep its decoder fails, with another it blurs."""
    model = LtxModel(build_pipeline(is_timestep_conditioned=True), device=CPU)
    frames = model.decode(sampled(FAMILY, model, 1.0))
    torch.manual_seed(0)  # of the noise that the decoder injects
    expected = from_pipeline(FAMILY, model, 1.0, "pt")
    torch.testing.assert_close(frames, expected, rtol=0.0, atol=1e-5)


def test_decoder_that_injects_noise_gives_the_same_frames_again() -> None:
    """A reward must not depend on what was drawn before, and decoding must draw nothing."""
    model = LtxModel(build_pipeline(is_timestep_conditioned=True), device=CPU)
    clips = noise(FAMILY, model, rows=2)
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


@pytest.mark.parametrize("name", ["ltx", "ltx2"])
def test_positions_are_told_in_seconds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same latents at another frame rate are another clip."""
    family, model = FAMILIES[name], build(FAMILIES[name])
    with torch.no_grad():
        before = model.velocity(*batch(family, model))
        monkeypatch.setattr(type(model), "FRAME_RATE", 8.0)
        assert not torch.allclose(model.velocity(*batch(family, model)), before, atol=1e-4)


def test_patched_transformer_is_refused() -> None:
    """LTXPipeline itself would give it positions of unpatched latents."""
    pipeline = build_pipeline()
    pipeline.transformer.register_to_config(patch_size=2)
    with pytest.raises(ValueError, match="patch_size 2: expected 1 and 1"):
        LtxModel(pipeline, device=CPU)
