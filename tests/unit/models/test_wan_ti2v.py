"""The Wan TI2V adapter: a first frame that is held, in the pipeline and in our samplers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image
from torch import Tensor

from rlvid.condition import Condition
from rlvid.config import ModelConfig, RolloutConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import sample_group, sample_ode
from rlvid.flow.sde import sde_step
from rlvid.flow.step_plans import make_step_plan
from rlvid.models import load_decoder, load_model
from rlvid.models.base import MediaModel
from rlvid.models.tiny_families.wan import build_ti2v, tiny_ti2v
from rlvid.models.wan import WanModel
from rlvid.models.wan_ti2v import FIRST_FRAME_LATENTS, WanTextImageModel
from rlvid.testing import check_model

CPU = torch.device("cpu")
CAPTION = "a red ball falls to the left"
CLIP = (9, 32, 32)


@pytest.fixture(scope="module")
def model() -> WanTextImageModel:
    return tiny_ti2v()


@pytest.fixture(scope="module")
def folder(model: WanTextImageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    model.save(str(folder))
    return folder


def noise_of(model: WanTextImageModel, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *model.latent_shape(*CLIP), generator=generator)


def picture() -> Tensor:
    """[3, H, W] of 256 levels."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (3, *CLIP[1:]), generator=generator).float().div(255.0)


def conditions(model: WanTextImageModel) -> tuple[Condition, Condition]:
    media = model.encode_media({"first_frame": picture()[None]}, CLIP[0])
    return model.encode_prompts([CAPTION]) | media, model.encode_prompts([""]) | media


def test_adapter_keeps_the_protocol(model: WanTextImageModel) -> None:
    assert isinstance(model, MediaModel)
    check_model(model, num_frames=CLIP[0], height=CLIP[1], width=CLIP[2])


@pytest.mark.parametrize("has_frame", [True, False])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_pipeline_samples_what_the_adapter_samples(
    model: WanTextImageModel, scale: float, has_frame: bool
) -> None:
    """With a first frame diffusers' other pipeline of the same parts, which holds it."""
    noise, pipeline, given = noise_of(model), model._pipeline, {}
    condition, negative = conditions(model)
    if has_frame:
        pipeline = WanImageToVideoPipeline(**pipeline.components, expand_timesteps=True)
        levels = picture().mul(255.0).round().byte().permute(1, 2, 0)
        given = {"image": Image.fromarray(levels.numpy())}
    else:
        condition, negative = model.encode_prompts([CAPTION]), model.encode_prompts([""])

    def expected(output_type: str) -> Any:
        return pipeline(
            **given,
            prompt=CAPTION,
            negative_prompt="",
            height=CLIP[1],
            width=CLIP[2],
            num_frames=CLIP[0],
            num_inference_steps=4,
            guidance_scale=scale,
            latents=noise.clone(),
            max_sequence_length=model.max_sequence_length,
            output_type=output_type,
        ).frames

    velocity = partial(
        guided_velocity, model, condition=condition, negative=negative, guidance_scale=scale
    )
    latents = sample_ode(velocity, noise, model.sigmas(4, *CLIP))
    torch.testing.assert_close(latents, expected("latent"), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(model.decode(latents), expected("pt"), atol=1e-5, rtol=0.0)


def test_first_frame_is_held_through_stochastic_steps(model: WanTextImageModel) -> None:
    """Noise is added there as anywhere, and led back: the video begins with the given frame."""
    config = RolloutConfig(group_size=2, num_denoising_steps=6, guidance_scale=1.0)
    plan = make_step_plan(config, recipe_seed=0, prompt_id="p", step=0)
    assert plan.stochastic_steps
    condition, _ = conditions(model)
    seeds = [3 if plan.num_noises == 1 else 3 + n for n in range(2)]
    sample = sample_group(
        lambda latents, sigma: model.velocity(latents, sigma, condition.expand(len(latents))),
        plan,
        noise_seeds=seeds,
        step_seeds=(5, 6),
        latent_shape=model.latent_shape(*CLIP),
    )
    first = condition[FIRST_FRAME_LATENTS].expand(2, -1, -1, -1, -1)
    torch.testing.assert_close(sample.latents[:, :, :1], first, atol=1e-6, rtol=0.0)
    assert not torch.allclose(sample.latents[0], sample.latents[1], atol=1e-3)


def test_ratio_and_gradient_are_of_the_other_frames_alone(model: WanTextImageModel) -> None:
    """What is recorded for the held frame is the same transition whoever speaks."""
    config = RolloutConfig(group_size=2, num_denoising_steps=6)
    noise = make_step_plan(config, recipe_seed=0, prompt_id="p", step=0).noise
    latents, (sigma, sigma_next) = noise_of(model), torch.tensor([[0.8], [0.6]])
    one, other = (model.velocity(latents, sigma, told) for told in conditions(model))
    generator = torch.Generator().manual_seed(4)
    drawn = torch.randn(latents.shape, generator=generator)
    taken = sde_step(one, latents, sigma, sigma_next, noise=noise, step_noise=drawn)
    scored = sde_step(
        other, latents, sigma, sigma_next, noise=noise, next_latents=taken.next_latents.detach()
    )
    assert torch.equal(scored.mean[:, :, 0], taken.mean[:, :, 0])
    assert not torch.allclose(scored.mean[:, :, 1:], taken.mean[:, :, 1:], atol=1e-4)
    weight = model.transformer.get_parameter("proj_out.weight")
    (gradient,) = torch.autograd.grad(one[:, :, 0].sum(), weight)
    assert not gradient.any()


def test_noise_on_the_held_frame_is_never_seen(model: WanTextImageModel) -> None:
    condition, _ = conditions(model)
    latents, sigma = noise_of(model), torch.tensor([0.7])
    changed = latents.clone()
    changed[:, :, 0] += 1.0
    with torch.no_grad():
        one, other = (model.velocity(x, sigma, condition) for x in (latents, changed))
    assert torch.equal(one[:, :, 1:], other[:, :, 1:])
    torch.testing.assert_close(
        other[:, :, 0] - one[:, :, 0], torch.full_like(one[:, :, 0], 1 / 0.7)
    )


def test_text_alone_is_the_text_to_video_model(model: WanTextImageModel) -> None:
    plain = WanModel(model._pipeline, device=CPU)
    noise, sigma = noise_of(model), torch.tensor([0.7])
    with torch.no_grad():
        expected = plain.velocity(noise, sigma, plain.encode_prompts([CAPTION]))
        assert torch.equal(model.velocity(noise, sigma, model.encode_prompts([CAPTION])), expected)


def test_saved_pipeline_loads_bit_for_bit(model: WanTextImageModel, folder: Path) -> None:
    """The folder says that timesteps are expanded, else it would not load as what it is."""
    loaded = load_model(ModelConfig(use="wan_ti2v", path=str(folder)), device="cpu")
    assert isinstance(loaded, WanTextImageModel)
    torch.testing.assert_close(
        loaded.transformer.state_dict(), model.transformer.state_dict(), atol=0.0, rtol=0.0
    )
    own, read = conditions(model)[0], conditions(loaded)[0]
    torch.testing.assert_close(dict(read.tensors), dict(own.tensors), atol=0.0, rtol=0.0)
    noise, sigma = noise_of(model), torch.tensor([0.7])
    with torch.no_grad():
        expected = model.velocity(noise, sigma, own)
        torch.testing.assert_close(
            loaded.velocity(noise, sigma, read), expected, atol=1e-5, rtol=0.0
        )


def test_decoder_alone_gives_the_same_pixels(model: WanTextImageModel, folder: Path) -> None:
    decode = load_decoder(ModelConfig(use="wan_ti2v", path=str(folder), device="cpu"))
    latents = noise_of(model, rows=2)
    assert torch.equal(decode(latents), model.decode(latents))


def test_folder_without_expanded_timesteps_is_refused(tmp_path: Path) -> None:
    build_ti2v().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "expand_timesteps": False}))
    with pytest.raises(ValueError, match="has no expand_timesteps: expected true"):
        WanTextImageModel.load(tmp_path, device=CPU)
