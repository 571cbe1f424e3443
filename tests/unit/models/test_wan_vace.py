"""The Wan VACE adapter, on a tiny random pipeline of diffusers' own classes."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.flow.sampler import sample_ode
from rlvid.models.tiny_families.wan import build_vace
from rlvid.models.wan_vace import CONTROL_LATENTS, WanControlModel
from tests.unit.models.family_checks import CPU, FAMILIES, build, frames, noise
from tests.unit.models.family_pipelines import control_inputs

FAMILY = FAMILIES["wan_vace"]
NAMES = ("control", "first_frame", "last_frame")
GIVEN = [names for count in (1, 2, 3) for names in combinations(NAMES, count)]


@cache
def opened() -> Any:
    return build(FAMILY)


def media_of(names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: one for name, one in frames(FAMILY, opened()).items() if name in names}


@pytest.mark.parametrize("names", GIVEN, ids="+".join)
def test_each_combination_is_told_as_the_pipeline_tells_it(names: tuple[str, ...]) -> None:
    """By the clip that comes out: the same noise, prompt and media, without guidance."""
    model, media = opened(), media_of(names)
    condition = model.encode_prompts([FAMILY.caption])
    condition |= model.encode_media(media, FAMILY.clip[0])
    start, sigmas = noise(FAMILY, model), model.sigmas(3, *FAMILY.clip)
    found = sample_ode(lambda x, sigma: model.velocity(x, sigma, condition), start, sigmas)
    model._pipeline.set_progress_bar_config(disable=True)
    expected = model._pipeline(
        prompt=FAMILY.caption,
        **dict(zip(("num_frames", "height", "width"), FAMILY.clip, strict=True)),
        **control_inputs(media, FAMILY.clip[0]),
        num_inference_steps=3,
        guidance_scale=1.0,
        latents=start,
        max_sequence_length=model.max_sequence_length,
        output_type="latent",
    ).frames
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)


def test_each_medium_changes_the_velocity() -> None:
    """One that nobody saw would be within the 1e-5 of the pipeline's own all the same."""
    model = opened()
    latents, sigma = noise(FAMILY, model), torch.tensor([0.7])
    text = model.encode_prompts([FAMILY.caption])
    with torch.no_grad():
        told = [text | model.encode_media(media_of(names), FAMILY.clip[0]) for names in GIVEN]
        found = [model.velocity(latents, sigma, one) for one in [text, *told]]
    for one, other in combinations(found, 2):
        assert float((one - other).abs().max()) > 1e-4


def test_given_frames_are_kept_and_the_others_followed() -> None:
    """A first frame stands among the latents to keep, and grey among those to follow."""
    model, grey = opened(), torch.full((1, *FAMILY.clip[:1], 3, *FAMILY.clip[1:]), 0.5)
    channels, of_grey = model._vae.channels, model._vae.encode(grey)
    of_control = model.encode_media(media_of(("control",)), FAMILY.clip[0])[CONTROL_LATENTS]
    of_frame = model.encode_media(media_of(("first_frame",)), FAMILY.clip[0])[CONTROL_LATENTS]
    assert torch.equal(of_control[:, :channels], of_grey)
    assert torch.equal(of_frame[:, channels : 2 * channels], of_grey)
    assert not torch.allclose(of_control[:, channels : 2 * channels], of_grey, atol=1e-3)
    assert not torch.allclose(of_frame[:, :channels], of_grey, atol=1e-3)
    assert (of_control[:, 2 * channels :] == 1.0).all()


def test_clip_of_one_frame_has_no_last_one() -> None:
    picture = torch.zeros(1, 3, *FAMILY.clip[1:])
    with pytest.raises(ValueError, match="at least 5, got 1"):
        opened().encode_media({"first_frame": picture, "last_frame": picture}, 1)


def test_grey_clip_of_a_text_alone_is_made_for_each_size() -> None:
    """It is kept, and a kept one of another size would not fit, or worse, would."""
    model = build(FAMILY)
    text = model.encode_prompts([FAMILY.caption])
    small, large = (
        torch.zeros(1, *model.latent_shape(*clip)) for clip in ((5, 32, 32), (9, 32, 48))
    )
    with torch.no_grad():
        found = [model.velocity(x, torch.tensor([0.5]), text) for x in (small, large, small)]
    assert torch.equal(found[0], found[2])
    assert [one.shape for one in found] == [small.shape, large.shape, small.shape]


def test_kept_grey_clip_of_a_rollout_serves_a_later_gradient() -> None:
    """A rollout's inference tensor could not take part in the backward of a training forward."""
    model = build(FAMILY)
    text, latents = model.encode_prompts([FAMILY.caption]), noise(FAMILY, model)
    with torch.inference_mode():
        model.velocity(latents, torch.tensor([0.5]), text)
    model.velocity(latents, torch.tensor([0.5]), text).sum().backward()
    assert model.transformer.vace_patch_embedding.weight.grad is not None


def test_transformer_of_another_vae_is_refused() -> None:
    pipeline = build_vace()
    pipeline.transformer.register_to_config(vace_in_channels=96)
    with pytest.raises(ValueError, match="is told 96 channels: expected 72"):
        WanControlModel(pipeline, device=CPU)
