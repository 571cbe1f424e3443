"""The Cosmos-Predict 2.5 adapter, on a tiny random pipeline of diffusers' own classes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from rlvid.condition import Condition
from rlvid.config import ModelConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import sample_ode
from rlvid.models import load_decoder, load_model, pipeline_model
from rlvid.models.base import MediaModel
from rlvid.models.cosmos import CosmosModel
from rlvid.models.tiny_families.cosmos import build_pipeline
from rlvid.testing import check_model

CPU = torch.device("cpu")
CAPTION = "a red ball falls to the left"
CLIP = (9, 32, 32)
NUM_STEPS = 4


class LetsAllThrough:
    """NVIDIA's guardrail downloads several models; parity needs none of its answers."""

    def to(self, device: Any) -> None:
        """Do nothing: it has no weights."""

    def check_text_safety(self, text: str) -> bool:
        return True


@pytest.fixture(scope="module")
def model() -> CosmosModel:
    return CosmosModel(build_pipeline(), device=CPU)


@pytest.fixture(scope="module")
def first_order() -> Any:
    """The same pipeline, whose scheduler takes UniPC's steps of first order: Euler in flow.

    UniPC starts at order 1 and then looks back; its sigmas do not depend on its order.
    """
    pipeline = build_pipeline()
    pipeline.scheduler = UniPCMultistepScheduler.from_config(
        pipeline.scheduler.config, solver_order=1, disable_corrector=list(range(NUM_STEPS))
    )
    pipeline.safety_checker = LetsAllThrough()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folder(model: CosmosModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    model.save(str(folder))
    return folder


def initial_noise(model: CosmosModel, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *model.latent_shape(*CLIP), generator=generator)


def first_frame() -> Tensor:
    """[1, 3, height, width] with the 256 levels of a picture."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand(1, 3, *CLIP[1:], generator=generator).mul(255.0).round().div(255.0)


def sampled(model: CosmosModel, scale: float, media: Condition | None = None) -> Tensor:
    positive, negative = model.encode_prompts([CAPTION]), model.encode_prompts([""])
    velocity = partial(
        guided_velocity,
        model,
        condition=positive if media is None else positive | media,
        negative=negative if media is None else negative | media,
        guidance_scale=scale,
    )
    return sample_ode(velocity, initial_noise(model), model.sigmas(NUM_STEPS, *CLIP))


def from_pipeline(pipeline: Any, noise: Tensor, guidance_scale: float, **options: Any) -> Tensor:
    frames: Tensor = pipeline(
        prompt=CAPTION,
        negative_prompt="",
        num_frames=CLIP[0],
        height=CLIP[1],
        width=CLIP[2],
        num_inference_steps=NUM_STEPS,
        guidance_scale=guidance_scale,
        latents=noise,
        max_sequence_length=pipeline.tokenizer.model_max_length,
        **options,
    ).frames
    return frames


def test_adapter_keeps_the_protocol(model: CosmosModel) -> None:
    check_model(model, num_frames=CLIP[0], height=CLIP[1], width=CLIP[2])
    assert isinstance(model, MediaModel)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_pipeline_samples_what_the_adapter_samples(
    model: CosmosModel, first_order: Any, scale: float
) -> None:
    """Noise levels, timesteps, masks and latent scale; the pipeline's guidance counts from 0."""
    expected = partial(from_pipeline, first_order, initial_noise(model), scale - 1.0)
    latents = expected(output_type="latent")
    torch.testing.assert_close(sampled(model, scale), latents, atol=1e-5, rtol=0.0)
    # Of the very same latents: this random VAE makes 20 times more of a rounding.
    frames = expected(output_type="pt")
    torch.testing.assert_close(model.decode(latents), frames, atol=1e-5, rtol=0.0)


def test_first_frame_is_told_as_the_pipeline_tells_it(model: CosmosModel, first_order: Any) -> None:
    """Its own latents end at the picture's, where the pipeline leaves half a per cent of noise."""
    picture = first_frame()
    expected = from_pipeline(
        first_order,
        initial_noise(model),
        3.0,
        image=to_pil_image(picture[0]),
        output_type="latent",
    )
    latents = sampled(model, 4.0, model.encode_media({"first_frame": picture}, CLIP[0]))
    torch.testing.assert_close(latents[:, :, 1:], expected[:, :, 1:], atol=1e-5, rtol=0.0)
    clean = model.encode(picture[:, None])
    torch.testing.assert_close(latents[:, :, :1], clean, atol=1e-5, rtol=0.0)
    left = 1.0 - model.sigmas(NUM_STEPS, *CLIP)[0]
    noise = initial_noise(model)[:, :, :1]
    torch.testing.assert_close(
        expected[:, :, :1], (1.0 - left) * clean + left * noise, atol=1e-5, rtol=0.0
    )


def test_first_frame_has_the_same_velocity_whatever_the_weights(model: CosmosModel) -> None:
    """Else its elements would enter ratios and gradients."""
    media = model.encode_media({"first_frame": first_frame()}, CLIP[0])
    latents, sigma = initial_noise(model), torch.tensor([0.5])
    velocity = model.velocity(latents, sigma, model.encode_prompts([CAPTION]) | media)
    (gradient,) = torch.autograd.grad(
        velocity[:, :, 0].sum() + 0.0 * velocity.sum(),
        model.transformer.proj_out.weight,  # type: ignore[union-attr, arg-type]
    )
    assert float(gradient.abs().max()) == 0.0


def test_levels_are_those_of_the_scheduler_before_and_after_sampling(
    model: CosmosModel, first_order: Any
) -> None:
    """Asking for them leaves the pipeline's own scheduler as it is."""
    sigmas = model.sigmas(35, *CLIP)
    assert (len(sigmas), sigmas[-1]) == (36, 0.0)
    assert sigmas[0] == pytest.approx(200.0 / 201.0)
    assert sigmas[-2] == pytest.approx(0.01 / 1.01)
    assert model._pipeline.scheduler.num_inference_steps is None


def test_saved_pipeline_loads_with_bit_identical_velocity(model: CosmosModel, folder: Path) -> None:
    loaded = load_model(ModelConfig(use="cosmos", path=str(folder)), device="cpu")
    latents, sigma = initial_noise(model, rows=2), torch.tensor([1.0, 0.3])
    with torch.no_grad():
        expected = model.velocity(latents, sigma, model.encode_prompts([CAPTION, ""]))
        got = loaded.velocity(latents, sigma, loaded.encode_prompts([CAPTION, ""]))
    assert torch.equal(got, expected)


def test_decoder_alone_gives_the_same_pixels(model: CosmosModel, folder: Path) -> None:
    decode = load_decoder(ModelConfig(use="cosmos", path=str(folder), device="cpu"))
    latents = initial_noise(model, rows=2)
    assert torch.equal(decode(latents), model.decode(latents))


def test_kept_conditions_stay_within_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 texts of the real encoder would be 53 GB."""
    model = CosmosModel(build_pipeline(), device=CPU)
    size = model.encode_prompts(["a"])["prompt_embeds"].nbytes
    monkeypatch.setattr(pipeline_model, "_CACHED_BYTES", 2 * size)
    model.encode_prompts(["b", "a", "c"])
    assert list(model._conditions) == ["a", "c"]


def test_pipeline_without_its_guardrail_does_not_sample(model: CosmosModel) -> None:
    """Only its parts are there for training."""
    with pytest.raises(RuntimeError, match="opened without its guardrail"):
        from_pipeline(model._pipeline, initial_noise(model), 1.0)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((10, 32, 32), "model.num_frames: expected a multiple of 4 plus 1, got 10"),
        ((9, 24, 32), "model.height: expected a multiple of 16, got 24"),
    ],
)
def test_clip_size_that_does_not_divide_is_refused(
    model: CosmosModel, size: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.latent_shape(*size)


def test_folder_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(ValueError, match="expected 'Cosmos2_5_PredictBasePipeline'"):
        CosmosModel.load(tmp_path, device=CPU)
